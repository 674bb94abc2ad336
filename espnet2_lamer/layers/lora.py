"""N gated LoRA experts in one fused form (Lamer-SSL, Eq. 1, 2, 5)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LoRAExperts(nn.Module):
    r"""A gated sum of N low-rank experts.

    .. math:: \Delta(x) = \frac{\alpha}{r} \sum_{k=1}^{N} g_k B_k A_k x

    All experts are computed by two matrix products, whatever N is: the A matrices are
    stacked to ``[N * r, d_in]``, the ``[..., N, r]`` activations are scaled by the
    gates, and the B matrices stand side by side as ``[d_out, N * r]``. A gate of zero
    removes an expert exactly and its parameters still get a (zero) gradient, so DDP
    needs no search for unused parameters. What is kept for the backward pass is N * r
    wide, not N * d_out.

    A starts kaiming-uniform and B zero: before the first update the sum is zero.
    Dropout acts on the input; ``alpha=None`` means alpha = r; ``like`` is a tensor
    whose device and dtype the parameters take.

    Raises:
        ValueError: ``num_experts`` or ``rank`` below 1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_experts: int,
        rank: int,
        alpha: float | None = None,
        dropout: float = 0.0,
        like: Tensor | None = None,
    ) -> None:
        super().__init__()
        if num_experts < 1 or rank < 1:
            raise ValueError(
                f"num_experts and rank must be 1 or more, found {num_experts} and "
                f"{rank}"
            )
        self.num_experts = num_experts
        self.rank = rank
        self.scale = (rank if alpha is None else alpha) / rank
        self.dropout = nn.Dropout(dropout)
        place = {} if like is None else {"device": like.device, "dtype": like.dtype}
        self.lora_A = nn.Parameter(torch.empty(num_experts, rank, in_features, **place))
        self.lora_B = nn.Parameter(
            torch.zeros(out_features, num_experts * rank, **place)
        )
        # Fan-in of one expert is d_in; on a 3-D tensor kaiming_uniform_ would take
        # rank * d_in instead.
        nn.init.kaiming_uniform_(self.lora_A.flatten(0, 1), a=5**0.5)

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained beside a frozen base, by kind."""
        return {"lora_A": self.lora_A, "lora_B": self.lora_B}

    def reduce(self, x: Tensor, gates: Tensor | None) -> Tensor:
        """Map ``x [..., d_in]`` to gated and scaled activations ``[..., N * r]``."""
        z = F.linear(self.dropout(x), self.lora_A.flatten(0, 1))
        if gates is None:
            return z if self.scale == 1.0 else self.scale * z
        # The scale goes where there is least to multiply.
        gates = (gates if self.scale == 1.0 else self.scale * gates).to(z.dtype)
        z = z.unflatten(-1, (self.num_experts, self.rank))
        return (z * gates.unsqueeze(-1)).flatten(-2)

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """Sum the experts: ``x [..., d_in]``, ``gates [..., N]`` to ``[..., d_out]``.

        Without gates all are one.
        """
        return F.linear(self.reduce(x, gates), self.lora_B)


class LoRAExpertLinear(LoRAExperts):
    r"""A frozen Linear plus a gated sum of N low-rank experts.

    .. math::
        y = W_0 x + b + \frac{\alpha}{r} \sum_{k=1}^{N} g_k B_k A_k x

    Before the first update the output equals ``base(x)``, since B is zero. ``base``,
    the Linear to adapt, is frozen here; other arguments are those of
    ``LoRAExperts``.
    """

    def __init__(
        self,
        base: nn.Linear,
        num_experts: int,
        rank: int,
        alpha: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        sizes = base.in_features, base.out_features
        super().__init__(*sizes, num_experts, rank, alpha, dropout, like=base.weight)
        self.base = base.requires_grad_(False)

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """Map ``x [..., d_in]`` to ``[..., d_out]``, by Linear and experts."""
        # Rows first: an in-place sum into a view would make autograd copy it.
        rows = x.reshape(-1, x.shape[-1])
        if gates is not None:
            gates = gates.reshape(-1, self.num_experts)
        y = self.base(rows)
        z = self.reduce(rows, gates).to(y.dtype)
        # Accumulated by the product itself: one pass less over the widest tensor.
        y = y.addmm_(z, self.lora_B.to(y.dtype).t())
        return y.view(*x.shape[:-1], y.shape[-1])
