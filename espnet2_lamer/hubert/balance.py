"""Balance term of a whole model: Eq. 7 over layers and over distributed ranks."""

from collections.abc import Callable

import torch
from torch import Tensor

from espnet2_lamer.layers import LamerConfig
from espnet2_lamer.layers.balance import routing_sums
from espnet2_lamer.layers.feed_forward import Routing, RoutingRecord

Group = list[Routing]


def by_expert_count(record: RoutingRecord) -> list[Group]:
    """Group routers with equal N, so that a few stacked operations serve all layers."""
    groups: dict[int, Group] = {}
    for routing in record:
        groups.setdefault(routing.probs.shape[-1], []).append(routing)
    return list(groups.values())


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
    gradient.

    Args:
        record: Routing of the batch.
        real: Frames that are not padding ``[B, T]``.
        lamer: Options of the experts; ``None`` without experts.
    """

    def __init__(
        self, record: RoutingRecord, real: Tensor, lamer: LamerConfig | None
    ) -> None:
        self.kind = "none" if lamer is None else lamer.balance
        self.frames = real.sum().float()
        self.groups: list[Group] = []
        self.sums: list[Tensor] = []
        self.counts: list[Tensor] = []
        if self.kind == "none":
            return
        for group in by_expert_count(record):
            num_experts = group[0].probs.shape[-1]
            sparse = lamer.top_k is not None and lamer.top_k < num_experts
            if not sparse and self.kind != "importance":
                # f is constant, so Eq. 7 is too: N = K and soft routing are left out.
                continue
            sums, counts = routing_sums(
                torch.stack([routing.probs for routing in group]),
                torch.stack([routing.gates for routing in group]),
                real,
            )
            self.groups.append(group)
            self.sums.append(sums)
            self.counts.append(counts)

    def local_sums(self) -> list[Tensor]:
        """What has to be added up over ranks."""
        return [self.frames, *self.sums, *self.counts]

    def part(self, total: list[Tensor], reduction: str) -> Tensor | None:
        """This rank's part of the balance term.

        Args:
            total: :meth:`local_sums` added up over ranks.
            reduction: ``"sum"`` or ``"mean"`` over routers.

        Returns:
            A scalar with gradient; ``None`` where nothing is balanced by a loss.
        """
        if not self.groups or self.kind == "bias":
            return None
        frames = total[0]
        parts = []
        for index, sums in enumerate(self.sums):
            num_experts = sums.shape[-1]
            mean = sums / frames
            if self.kind == "importance":
                whole = total[1 + index] / frames
                share = self.frames / frames
                parts.append(num_experts * (2 * whole * mean - whole**2 * share).sum())
            else:
                counts = total[1 + len(self.sums) + index]
                f = counts / counts.sum(-1, keepdim=True).clamp(min=1.0)
                parts.append(num_experts * (f * mean).sum())
        routers = sum(map(len, self.groups)) if reduction == "mean" else 1
        return torch.stack(parts).sum() / routers

    def note_load(
        self, total: list[Tensor], buffer_of: Callable[[Routing], Tensor]
    ) -> None:
        """Give every router with a selection bias the load of this batch.

        Args:
            total: :meth:`local_sums` added up over ranks.
            buffer_of: Maps a routing to its router's ``load [N]``.
        """
        if self.kind != "bias":
            return
        for index, group in enumerate(self.groups):
            counts = total[1 + len(self.sums) + index]
            load = counts / counts.sum(-1, keepdim=True).clamp(min=1.0)
            for routing, row in zip(group, load, strict=True):
                buffer_of(routing).copy_(row)
