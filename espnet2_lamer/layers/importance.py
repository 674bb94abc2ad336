"""How much a loss depends on each expert, and on each component of its rank."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from espnet2_lamer.layers.experts import LoRAExperts
from espnet2_lamer.layers.feed_forward import LamerFeedForward


@dataclass(eq=False)
class ComponentImportance:
    r"""Sensitivity of a loss to the singular values of every expert of a module.

    Rows of A and columns of B are no components yet: any invertible r x r matrix may
    stand between them. The singular vectors of the learnt update
    :math:`B A = \sum_i \sigma_i u_i v_i^\top` are. For each, over batches t,

    .. math::
        I_i = \frac{1}{T} \sum_t
            \left| \sigma_i \frac{\partial L_t}{\partial \sigma_i} \right|,
        \qquad \sigma_i \frac{\partial L}{\partial \sigma_i}
        = u_i^\top \frac{\partial L}{\partial B} B^\top u_i

    which to first order is how much the loss of a batch changes without the component
    (AdaLoRA's sensitivity of singular values, arXiv 2303.10512, Eq. 8, averaged here
    where it is smoothed there). Weights stay as they are meanwhile.
    """

    experts: LoRAExperts
    batches: int = 0
    sums: Tensor = field(init=False)

    def __post_init__(self) -> None:
        with torch.no_grad():
            a, b = self.experts.lora_A.float(), self._columns(self.experts.lora_B)
            q, r = torch.linalg.qr(b)  # [N, d_out, k], [N, k, r]
            u, _, _ = torch.linalg.svd(r @ a, full_matrices=False)
            self._u = q @ u  # [N, d_out, i]
            self._b_u = b.mT @ self._u  # [N, r, i]
            self.sums = torch.zeros_like(self._u[:, 0])  # [N, i]

    def _columns(self, b: Tensor) -> Tensor:
        """``[d_out, N * r]`` as ``[N, d_out, r]``."""
        sizes = self.experts.num_experts, self.experts.rank
        return b.detach().float().unflatten(1, sizes).transpose(0, 1)

    @torch.no_grad()
    def add(self) -> None:
        """Add a batch, whose gradient ``lora_B`` has."""
        grad = self._columns(self.experts.lora_B.grad)
        self.sums += ((grad.mT @ self._u) * self._b_u).sum(1).abs()
        self.batches += 1

    @property
    def values(self) -> Tensor:
        """I of every expert and component, ``[N, i]``; the largest update first."""
        return self.sums / max(self.batches, 1)


def experts_by_layer(
    model: nn.Module,
) -> Iterator[tuple[int, dict[str, LoRAExperts]]]:
    """Yield every layer with experts, by number from 0, and its targets' experts."""
    for module in model.modules():
        if isinstance(module, LamerFeedForward):
            named = module.named_children()
            yield (
                module.layer,
                {name: m for name, m in named if isinstance(m, LoRAExperts)},
            )


def effective_rank(values: Tensor) -> float:
    r"""Components that count, between 1 and their number, of importances ``[N, i]``.

    With the shares :math:`p_i = I_i / \sum_j I_j` of an expert's components it has
    :math:`\exp(-\sum_i p_i \ln p_i)` (Roy and Vetterli's effective rank, 2007, of
    importances in place of singular values); experts are averaged by their importance.
    Without any importance it is 1.
    """
    values = values.double()
    whole = values.sum(-1, keepdim=True)
    entropy = torch.special.entr(values / whole.clamp(min=1e-300)).sum(-1)
    total = float(whole.sum())
    if total == 0.0:
        return 1.0
    return float((entropy.exp() * whole.squeeze(-1)).sum()) / total
