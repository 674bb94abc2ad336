"""HuBERT whose frozen layers have a mixture of LoRA experts (Lamer-SSL)."""

import copy
from typing import Any

import torch

from espnet2.asr.encoder.hubert_encoder import TorchAudioHuBERTPretrainEncoder
from espnet2.layers.lamer.config import LamerConfig
from espnet2.layers.lamer.feed_forward import add_lamer


class LamerHubertPretrainEncoder(TorchAudioHuBERTPretrainEncoder):
    """Extend a HuBERT to new languages: it stays as it is, LoRA experts train.

    Beside the experts and their routers the unit embeddings train, and the mask
    embedding where the base has none.

    Args:
        lamer: Fields of ``LamerConfig``; None trains everything, as the parent does.
        base: File with the HuBERT to extend: the state dict of a torchaudio
            ``Wav2Vec2Model`` or a checkpoint of ESPnet's ``torchaudio_hubert``. Its
            sizes are arguments of this class. None starts from random weights.
        normalize_waveform: Zero mean and unit variance of every utterance, which
            HuBERT-Large expects.
        kwargs: Arguments of ``TorchAudioHuBERTPretrainEncoder``.

    Raises:
        ValueError: The base is none of the kind, or has other sizes.
    """

    def __init__(
        self,
        input_size: int = 1,
        lamer: dict[str, Any] | None = None,
        base: str | None = None,
        normalize_waveform: bool = False,
        **kwargs,
    ):
        super().__init__(input_size, **kwargs)
        self.normalize_waveform = normalize_waveform
        self.lamer = None if lamer is None else LamerConfig(**lamer)
        model = self.hubert_pretrain_model
        has_mask = False if base is None else load_base(model, base)
        if self.lamer is not None:
            add_lamer(model.wav2vec2, self.lamer)
            model.mask_generator.requires_grad_(not has_mask)
        # What the parent keeps has no experts.
        self.pretrained_params = copy.deepcopy(model.state_dict())

    def forward(self, xs_pad: torch.Tensor, ilens: torch.Tensor, *args, **kwargs):
        """Encode waveforms (B, L) of lengths (B), as the parent does."""
        if self.normalize_waveform:
            xs_pad = normalize_waveform(xs_pad, ilens)
        return super().forward(xs_pad, ilens, *args, **kwargs)

    def frame_lengths(self, ilens: torch.Tensor) -> torch.Tensor:
        """Return the number of frames of waveforms of these lengths (B)."""
        extractor = self.hubert_pretrain_model.wav2vec2.feature_extractor
        for block in extractor.conv_layers:
            ilens = (ilens - block.kernel_size) // block.stride + 1
        return ilens.clamp(min=0)


def load_base(model: torch.nn.Module, path: str) -> bool:
    """Load a HuBERT into torchaudio's ``HuBERTPretrainModel``, all but its units.

    Returns:
        Whether the file has a mask embedding, too.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    # A checkpoint of ESPnet, else a state dict of torchaudio.
    prefix = "encoder.hubert_pretrain_model."
    found = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    found = found or {f"wav2vec2.{key}": value for key, value in state.items()}
    found = {k: v for k, v in found.items() if not k.startswith("logit_generator.")}
    own = model.state_dict()
    wanted = {key for key in own if key.startswith("wav2vec2.")}
    shapes = {key: value.shape for key, value in own.items()}
    wrong = sorted(wanted - found.keys())
    wrong += sorted(k for k, v in found.items() if shapes.get(k) != v.shape)
    if wrong:
        raise ValueError(
            f"{path}: {len(wrong)} tensors are missing, unknown or of another shape, "
            f"e.g. {wrong[0]}; encoder_conf must have the sizes of this HuBERT"
        )
    model.load_state_dict(found, strict=False)
    return "mask_generator.mask_embedding" in found


def normalize_waveform(xs_pad: torch.Tensor, ilens: torch.Tensor) -> torch.Tensor:
    """Normalise waveforms (B, L) over their valid samples; padding becomes 0."""
    padding = torch.arange(xs_pad.shape[1], device=xs_pad.device) >= ilens[:, None]
    count = ilens[:, None].clamp(min=1)
    mean = xs_pad.masked_fill(padding, 0.0).sum(1, keepdim=True) / count
    centred = (xs_pad - mean).masked_fill(padding, 0.0)
    variance = centred.square().sum(1, keepdim=True) / count
    return centred * torch.rsqrt(variance + 1e-5)
