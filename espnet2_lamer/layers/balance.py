"""Load balancing between experts (Lamer-SSL, Eq. 7): one router's, a model's."""

import torch
from torch import Tensor

from espnet2_lamer.layers.config import LamerConfig
from espnet2_lamer.layers.feed_forward import Routing, RoutingRecord


def routing_sums(
    probs: Tensor, gates: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum probabilities and count dispatched frames (gate above 0) per expert.

    ``mask`` marks real frames ``[F]`` of ``[F, N]`` or, of several routers, ``[L, F,
    N]``. Sums ``[N]`` (``[L, N]``) have a gradient, counts none.
    """
    used = (gates.detach() > 0).to(probs.dtype)
    if mask is not None:
        # Replacing (not multiplying) keeps a NaN in padding out of the sums; unlike
        # indexing it asks the device for no count.
        padding = ~mask.unsqueeze(-1)
        probs, used = probs.masked_fill(padding, 0.0), used.masked_fill(padding, 0.0)
    return probs.sum(-2), used.sum(-2)


def load_balancing_loss(
    probs: Tensor, gates: Tensor, mask: Tensor | None = None
) -> Tensor:
    r"""Load-balancing loss of one router, a float32 scalar.

    .. math:: L_{lb} = N \sum_{k=1}^{N} m_k f_k

    with m the mean probability and f the share of dispatched frames, normalised to
    sum 1, so that perfect balance gives 1 whatever K is (Lamer-SSL, Eq. 7). Both are
    ``[..., N]``; ``mask [...]`` is True where a frame is real.
    """
    probs, gates = probs.flatten(0, -2), gates.flatten(0, -2)
    mask = None if mask is None else mask.flatten()
    sums, counts = routing_sums(probs, gates, mask)
    frames = len(probs) if mask is None else mask.sum()
    return probs.shape[-1] * torch.sum(sums / frames * _shares(counts))


class BalanceTerm:
    r"""Sums that the balance term of one batch needs, and the term itself.

    Over ranks i with n_i real frames each, m and f are those of the global batch:

    .. math::
        \sum_l N_l \sum_k f_{lk} m_{lk}
        = \sum_i \sum_l N_l \sum_k f_{lk} \frac{1}{n} \sum_{t \in i} p_{tlk}

    so a rank's part is linear in its own probabilities once f and n are known. For
    ``importance`` (:math:`N \sum_k m_k^2`) the part is
    :math:`N \sum_k (2 \bar m_k m_k^{(i)} - \bar m_k^2 n_i / n)`, with the global
    :math:`\bar m` held constant: parts add up to the term, their gradients to its
    gradient. ``real [B, T]`` marks the frames that are not padding.
    """

    def __init__(
        self, record: RoutingRecord, real: Tensor, lamer: LamerConfig | None
    ) -> None:
        self.kind = "none" if lamer is None else lamer.balance
        packing = record.packing
        # Where padding was not computed nobody has to ask how many frames are real.
        self.frames = (
            real.sum().float()
            if packing is None
            else torch.full((), float(packing.size), device=real.device)
        )
        # Where f is constant Eq. 7 is, too: N = K and soft routing are left out.
        self.groups: list[list[Routing]] = [
            group
            for group in record.by_expert_count()
            if self.kind == "importance"
            or (self.kind != "none" and group[0].router.is_sparse)
        ]
        mask = real.flatten() if packing is None else None
        pairs = [
            routing_sums(
                torch.stack([routing.probs for routing in group]),
                torch.stack([routing.gates for routing in group]),
                mask,
            )
            for group in self.groups
        ]
        self.sums = [sums for sums, _ in pairs]
        self.counts = [counts for _, counts in pairs]

    def local_sums(self) -> list[Tensor]:
        """What has to be added up over ranks."""
        return [self.frames, *self.sums, *self.counts]

    def part(self, total: list[Tensor], reduction: str) -> Tensor | None:
        """This rank's part, a scalar with gradient, from sums of :meth:`local_sums`.

        ``reduction`` is ``"sum"`` or ``"mean"`` over routers. Where nothing is balanced
        by a loss there is none.
        """
        if not self.groups or self.kind == "bias":
            return None
        frames, parts = total[0], []
        sums, counts = self._by_group(total)
        for own, whole, used in zip(self.sums, sums, counts, strict=True):
            mean = own / frames
            if self.kind == "importance":
                whole = whole / frames
                term = 2 * whole * mean - whole**2 * (self.frames / frames)
            else:
                term = _shares(used) * mean
            parts.append(own.shape[-1] * term.sum())
        routers = sum(map(len, self.groups)) if reduction == "mean" else 1
        return torch.stack(parts).sum() / routers

    def note_load(self, total: list[Tensor]) -> None:
        """Give every router with a selection bias the batch's load, from all ranks."""
        if self.kind == "bias":
            _, counts = self._by_group(total)
            for group, used in zip(self.groups, counts, strict=True):
                for routing, row in zip(group, _shares(used), strict=True):
                    routing.router.load.copy_(row)

    def _by_group(self, total: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Sums and counts among :meth:`local_sums`."""
        return total[1 : 1 + len(self.groups)], total[1 + len(self.groups) :]


def _shares(counts: Tensor) -> Tensor:
    return counts / counts.sum(-1, keepdim=True).clamp(min=1.0)
