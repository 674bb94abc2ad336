"""ESPnet model ``lamer``: masked prediction plus expert balance (Lamer-SSL, Eq. 8)."""

import math
from collections.abc import Sequence

import torch
from espnet2.hubert.espnet_model import TorchAudioHubertPretrainModel
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor
from torch.nn import functional as F

from espnet2_lamer.asr.encoder.lamer_hubert import LamerHubertEncoder
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers import Router, load_balancing_loss, record_routing
from espnet2_lamer.layers.balance import importance_loss, routing_means
from espnet2_lamer.layers.recording import Routing, RoutingRecord

AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class LamerHubertPretrainModel(TorchAudioHubertPretrainModel):
    r"""Masked-prediction training of a HuBERT with LoRA experts.

    .. math::
        L = \frac{1}{|M|} \sum_{t \in M} -\log P(z_t \mid h_t)
            + \frac{u}{|U|} \sum_{t \in U} -\log P(z_t \mid h_t)
            + \lambda \sum_l L_{lb}^{(l)}
            + w \cdot \overline{\lVert conv \rVert^2}

    M are the masked, U the other real frames. The last term counts only where the
    convolution stack trains. Dividing by the number of
    masked frames keeps lambda's meaning whatever the batch is.

    Args:
        encoder: Backbone, experts and head.
        token_list: Units ``0 .. K-1`` in order, then ``<unk>``, ``<sos/eos>``.
        balance_weight: lambda.
        balance_reduction: ``"sum"`` or ``"mean"`` over balanced layers.
        unmasked_weight: u, fairseq's ``pred_nomask_weight``; 0 in HuBERT and Lamer-SSL.
        feature_penalty: w, for training the convolution stack.
        logit_temp: Temperature of the cosine logits.
        amp_dtype: ``none``, ``bf16`` (also on CPU) or ``fp16``.

    Raises:
        RecipeError: K of the head and of the token list differ, or an option has an
            unknown value.
    """

    def __init__(
        self,
        encoder: LamerHubertEncoder,
        token_list: Sequence[str],
        balance_weight: float = 0.001,
        balance_reduction: str = "sum",
        unmasked_weight: float = 0.0,
        feature_penalty: float = 10.0,
        logit_temp: float = 0.1,
        amp_dtype: str = "none",
    ) -> None:
        AbsESPnetModel.__init__(self)
        if balance_reduction not in ("sum", "mean"):
            raise RecipeError(
                f"model_conf.balance_reduction: found {balance_reduction!r}, expected "
                "'sum' or 'mean'"
            )
        if amp_dtype not in AMP_DTYPES:
            raise RecipeError(
                f"amp_dtype: found {amp_dtype!r}, expected one of {list(AMP_DTYPES)}"
            )
        units = [str(unit) for unit in range(encoder.num_classes)]
        if list(token_list[: len(units)]) != units or len(token_list) != len(units) + 2:
            raise RecipeError(
                f"token_list: expected 0 .. {len(units) - 1} in order, <unk>, "
                f"<sos/eos> for num_classes {len(units)}; found {len(token_list)} "
                "lines. Make it with stage 5, or set num_classes to the codebook's K"
            )
        self.encoder = encoder
        encoder.hubert_pretrain_model.logit_generator.logit_temp = logit_temp
        self.token_list = list(token_list)
        self.vocab_size = len(self.token_list)
        self.balance_weight = balance_weight
        self.balance_reduction = balance_reduction
        self.unmasked_weight = unmasked_weight
        self.feature_penalty = feature_penalty
        self.amp_dtype = amp_dtype

    def forward(
        self,
        speech: Tensor,
        speech_lengths: Tensor,
        text: Tensor,
        text_lengths: Tensor,
        mask_indices: Tensor,
        **kwargs: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor | None], Tensor]:
        """Compute the loss of one batch.

        Args:
            speech: Waveforms ``[B, n]``.
            speech_lengths: Valid samples ``[B]``.
            text: Unit of every frame ``[B, T]``, padded with -1.
            text_lengths: Frames ``[B]``.
            mask_indices: Masked frames of each utterance ``[B, M]``, padded with -1.
            kwargs: Other data, e.g. ``lang``; unused.

        Returns:
            loss, stats, weight = number of masked frames.
        """
        if self.training:
            for module in self.modules():
                if isinstance(module, Router):
                    module.update_selection_bias()
        mask = index_mask(mask_indices, text.shape[1])
        dtype = AMP_DTYPES[self.amp_dtype]
        device = speech.device.type
        with (
            record_routing(self) as record,
            torch.autocast(device, dtype=dtype, enabled=dtype is not None),
        ):
            output = self.encoder(
                speech, speech_lengths, mask, with_unmasked=self.unmasked_weight > 0
            )
        labels = text[mask]
        count = labels.numel()
        if count:
            masked_loss = F.cross_entropy(output.logits, labels)
        else:
            # A zero that still depends on everything that trains, as DDP requires.
            masked_loss = output.logits.sum()
        loss = masked_loss
        stats: dict[str, Tensor | None] = {
            "loss_m": masked_loss.detach(),
            "loss_m_bits": masked_loss.detach() / math.log(2.0),
            "acc_m": (output.logits.detach().argmax(-1) == labels).float().mean()
            if count
            else None,
        }
        if output.unmasked_logits is not None:
            others = text[:, : output.real.shape[1]][output.real & ~mask]
            unmasked_loss = F.cross_entropy(output.unmasked_logits, others)
            loss = loss + self.unmasked_weight * unmasked_loss
            stats["loss_u"] = unmasked_loss.detach()
            correct = output.unmasked_logits.detach().argmax(-1) == others
            stats["acc_u"] = correct.float().mean()
        balance = self._balance(record, output.real)
        if balance is not None:
            loss = loss + self.balance_weight * balance
            stats["balance"] = balance.detach()
        if output.feature_penalty is not None:
            loss = loss + self.feature_penalty * output.feature_penalty
            stats["feature_penalty"] = output.feature_penalty.detach()
        stats["loss"] = loss.detach()
        return loss, stats, speech.new_tensor(float(max(count, 1)))

    def _balance(self, record: RoutingRecord, real: Tensor) -> Tensor | None:
        """Balance term over the layers where it can vary; ``None`` without one."""
        lamer = self.encoder.lamer
        if lamer is None or lamer.balance == "none":
            return None
        losses = []
        for routing in record:
            sparse = lamer.top_k is not None and lamer.top_k < routing.probs.shape[-1]
            if lamer.balance == "importance":
                losses.append(importance_loss(routing.probs, real))
            elif not sparse:
                # f is constant, so Eq. 7 is too: N = K and soft routing are left out.
                continue
            elif lamer.balance == "bias":
                if self.training:
                    self._note_load(routing, real)
            else:
                losses.append(load_balancing_loss(routing.probs, routing.gates, real))
        if not losses:
            return None
        total = torch.stack(losses)
        return total.sum() if self.balance_reduction == "sum" else total.mean()

    def _note_load(self, routing: Routing, real: Tensor) -> None:
        layers = self.encoder.wav2vec2.encoder.transformer.layers
        router = layers[routing.layer].feed_forward.routers[routing.name]
        _, share = routing_means(routing.probs.detach(), routing.gates, real)
        router.load.copy_(share)

    def collect_feats(
        self, speech: Tensor, speech_lengths: Tensor, **kwargs: Tensor
    ) -> dict[str, Tensor]:
        """Return the waveform itself: there is no frontend to take statistics of."""
        return {"feats": speech, "feats_lengths": speech_lengths}


def index_mask(indices: Tensor, num_frames: int) -> Tensor:
    """Turn padded frame indices ``[B, M]`` (padding -1) into a bool ``[B, T]``."""
    mask = torch.zeros(
        indices.shape[0], num_frames + 1, dtype=torch.bool, device=indices.device
    )
    # Padding lands in an extra last column, which is cut off.
    columns = torch.where(indices < 0, num_frames, indices)
    return mask.scatter_(1, columns, True)[:, :num_frames]
