"""Masked prediction with load balancing between LoRA experts (Lamer-SSL, Eq. 8)."""

import torch

from espnet2.hubert.espnet_model import TorchAudioHubertPretrainModel
from espnet2.layers.lamer.balance import BalanceTerm
from espnet2.layers.lamer.experts import Router
from espnet2.layers.lamer.feed_forward import record_routing


class LamerHubertPretrainModel(TorchAudioHubertPretrainModel):
    """HuBERT pretraining of the encoder ``lamer_hubert``.

    Args:
        balance_weight: Weight of the balance term (lambda). As the parent's loss is a
            sum over masked frames, so is the term counted once per masked frame.
        balance_reduction: ``sum`` or ``mean`` over routers.
        kwargs: Arguments of ``TorchAudioHubertPretrainModel``.
    """

    def __init__(
        self,
        balance_weight: float = 0.001,
        balance_reduction: str = "sum",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if balance_reduction not in ("sum", "mean"):
            raise ValueError(
                f"balance_reduction: found {balance_reduction!r}, expected sum or mean"
            )
        self.balance_weight = balance_weight
        self.balance_reduction = balance_reduction

    def forward(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        text: torch.Tensor,
        text_lengths: torch.Tensor,
        **kwargs,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """Return loss, statistics and weight of speech (B, L) and units (B, T)."""
        if self.training:
            for module in self.modules():
                if isinstance(module, Router):
                    module.update_selection_bias()
        with record_routing(self) as record:
            loss, stats, weight = super().forward(
                speech, speech_lengths, text, text_lengths, **kwargs
            )
        if not len(record):
            return loss, stats, weight
        frames = self.encoder.frame_lengths(speech_lengths)
        real = torch.arange(int(frames.max()), device=frames.device) < frames[:, None]
        balance = BalanceTerm(record, real, self.encoder.lamer)
        sums = balance.local_sums()
        term = balance.part(sums, self.balance_reduction)
        if self.training:
            balance.note_load(sums)
        if term is not None:
            loss = loss + self.balance_weight * term * stats["count_m"]
            stats.update(balance=term.detach().reshape(1), loss=loss.detach())
        return loss, stats, weight
