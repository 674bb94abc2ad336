"""Masked prediction per language: accuracy and bits, for the log only."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from espnet2_lamer.hubert.distributed import global_sums


class LanguageStatistics:
    """Adds up masked frames, right answers and nats per language on the device.

    Args:
        names: Languages by their number in the data ``lang``; empty: nothing is done.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = list(names)
        self._sums: Tensor | None = None

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, languages: Tensor) -> None:
        """Add one batch; nothing is copied to the host.

        Args:
            logits: Of the masked frames ``[M, K]``.
            labels: Their units ``[M]``.
            languages: Their languages ``[M]``.
        """
        if not self.names:
            return
        nats = F.cross_entropy(logits, labels, reduction="none")
        right = (logits.argmax(-1) == labels).to(nats.dtype)
        rows = torch.stack([torch.ones_like(nats), right, nats], -1)  # [M, 3]
        if self._sums is None:
            self._sums = rows.new_zeros(len(self.names), 3)
        self._sums.index_add_(0, languages, rows)

    def read(self) -> dict[str, float]:
        """Read and reset, over all ranks, in one transfer.

        Returns:
            ``acc_m_<lang>`` and ``bits_m_<lang>`` of the languages that occurred.
        """
        if self._sums is None:
            return {}
        (sums,) = global_sums([self._sums])
        self._sums = None
        figures = {}
        for name, (frames, right, nats) in zip(self.names, sums.tolist(), strict=True):
            if frames:
                figures[f"acc_m_{name}"] = right / frames
                figures[f"bits_m_{name}"] = nats / frames / math.log(2.0)
        return figures

    def state(self) -> dict[str, Any]:
        """This rank's sums so far, for a checkpoint."""
        return {} if self._sums is None else {"sums": self._sums}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self._sums = state.get("sums")
