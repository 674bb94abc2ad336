"""Hugging Face's HuBERT with PEFT's LoRA and Arrow, on our weights, head and masks."""

import copy
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet2_lamer.convert.architecture import normalize_waveform
from espnet2_lamer.convert.huggingface import (
    MASK_EMBEDDING,
    hugging_face_name,
    model_config,
)
from espnet2_lamer.hubert.espnet_model import index_mask
from espnet2_lamer.layers.config import LINEARS

TARGETS = list(LINEARS)


def hugging_face(backbone: nn.Module) -> nn.Module:
    """Build transformers' ``HubertModel`` with the weights of our ESPnet model.

    Its feature extractor is frozen and keeps no graph; attention is torch's.
    """
    from transformers import HubertConfig, HubertModel

    wav2vec2 = backbone.encoder.wav2vec2
    # Without these it would have no mask embedding, and ignore the masks it is given.
    settings = model_config(wav2vec2.architecture) | {
        "apply_spec_augment": True,
        "mask_time_prob": 0.65,
        "attn_implementation": "sdpa",
    }
    model = HubertModel(HubertConfig(**settings))
    state = {
        hugging_face_name(key): value for key, value in wav2vec2.state_dict().items()
    }
    mask = backbone.encoder.hubert_pretrain_model.mask_generator.mask_embedding
    model.load_state_dict(state | {MASK_EMBEDDING: mask.detach()}, strict=True)
    model.requires_grad_(False)
    model.feature_extractor._freeze_parameters()
    return model


def with_lora(model: nn.Module, rank: int) -> nn.Module:
    """Wrap both FFN Linears of every layer in one LoRA of PEFT, scale 1."""
    from peft import get_peft_model

    return get_peft_model(model, _lora(rank))


def in_bf16(model: nn.Module) -> nn.Module:
    """Cast the frozen weights, as PEFT leaves a model that was loaded in bf16.

    Its LoRAs stay float32 (``autocast_adapter_dtype``).
    """
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                module.register_buffer(name, buffer.bfloat16())
    return model


def _lora(rank: int) -> "LoraConfig":  # noqa: F821
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS)


def with_arrow(model: nn.Module, experts: int, rank: int, top_k: int) -> nn.Module:
    """Give both FFN Linears PEFT's Arrow: a mixture of LoRAs, routed per token.

    PEFT makes it from adapters on disk and for inference: the routing follows from
    their weights, once, and does not train. The LoRAs are set to train here.
    """
    from peft import ArrowConfig, create_arrow_model, get_peft_model

    with tempfile.TemporaryDirectory() as name:
        folders = []
        for number in range(experts):
            one = get_peft_model(copy.deepcopy(model), _lora(rank))
            folders.append(str(Path(name) / f"expert{number}"))
            one.save_pretrained(folders[-1])
        arrow = create_arrow_model(model, folders, ArrowConfig(top_k=top_k))
    for key, parameter in arrow.named_parameters():
        parameter.requires_grad_("lora_" in key and ".task_" in key)
    return arrow


class HuggingFacePretrainModel(nn.Module):
    """Masked prediction with a Hugging Face HuBERT, as our ESPnet model computes it.

    Args:
        hubert: Waveforms to hidden states, the masked frames given.
        head: Our head; a copy of it trains.
        amp_dtype: Autocast's, or ``None``.
        loaded: The network has that type itself: autocast is the head's alone.
    """

    def __init__(
        self,
        hubert: nn.Module,
        head: nn.Module,
        amp_dtype: torch.dtype | None,
        loaded: bool = False,
    ) -> None:
        super().__init__()
        self.hubert = hubert
        self.head = copy.deepcopy(head)
        self.amp_dtype = amp_dtype
        self.loaded = loaded

    def forward(
        self,
        speech: Tensor,
        speech_lengths: Tensor,
        text: Tensor,
        text_lengths: Tensor,
        mask_indices: Tensor,
        **_: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Compute loss, figures and weight of a batch of ours."""
        mask = index_mask(mask_indices, text.shape[1])
        real = torch.arange(speech.shape[1], device=speech.device)
        real = real < speech_lengths[:, None]
        speech = normalize_waveform(speech, speech_lengths)
        device, dtype = speech.device.type, self.amp_dtype
        with torch.autocast(device, dtype, enabled=bool(dtype) and not self.loaded):
            hidden = self.hubert(
                speech.to(dtype) if self.loaded else speech,
                attention_mask=real.long(),
                mask_time_indices=mask,
            ).last_hidden_state
        with torch.autocast(device, dtype, enabled=bool(dtype)):
            logits = self.head(hidden[mask])
        labels = text[mask]
        loss = F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1)
        weight = loss.new_tensor(float(len(labels)))
        return loss, {"loss_m": loss.detach()}, weight
