"""Ways to compute a Linear with N LoRA experts, as other projects do it.

Each form is written here from its description and takes its weights from a
:class:`LoRAExpertLinear`, so that outputs and gradients can be compared. All of them
compute y = W x + b + s * sum_k g_k B_k A_k x for the same gates g.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet2_lamer.layers import LoRAExpertLinear


class FrozenLinear(nn.Module):
    """The Linear alone."""

    def __init__(self, ours: LoRAExpertLinear) -> None:
        super().__init__()
        self.base = ours.base

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """Map ``[T, d_in]`` to ``[T, d_out]``."""
        return self.base(x)


class OneLoRA(nn.Module):
    """Plain LoRA of the same rank: one expert, no router."""

    def __init__(self, ours: LoRAExpertLinear) -> None:
        super().__init__()
        self.base = ours.base
        self.scale = ours.scale
        self.down = nn.Linear(self.base.in_features, ours.rank, bias=False)
        self.up = nn.Linear(ours.rank, self.base.out_features, bias=False)

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """Map ``[T, d_in]`` to ``[T, d_out]``."""
        return self.base(x) + self.scale * self.up(self.down(x))


class PeerExperts(nn.Module):
    """Experts kept as 2 N small Linears, as all peers do.

    Args:
        ours: Its Linear is shared, its experts are copied.
    """

    def __init__(self, ours: LoRAExpertLinear) -> None:
        super().__init__()
        self.base = ours.base
        self.scale = ours.scale
        self.num_experts, rank, d_in = ours.lora_A.shape
        d_out = self.base.out_features
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        stacked = ours.lora_B.unflatten(1, (self.num_experts, rank))
        for number in range(self.num_experts):
            self.down.append(nn.Linear(d_in, rank, bias=False))
            self.up.append(nn.Linear(rank, d_out, bias=False))
            with torch.no_grad():
                self.down[-1].weight.copy_(ours.lora_A[number])
                self.up[-1].weight.copy_(stacked[:, number])

    def expert_gradients(self) -> tuple[Tensor, Tensor]:
        """Gradients in the shapes of ``lora_A`` and ``lora_B``."""
        down = torch.stack([linear.weight.grad for linear in self.down])
        return down, torch.cat([linear.weight.grad for linear in self.up], dim=1)


class SparseLoop(PeerExperts):
    """Per expert: find its frames, gather, compute, ``index_add_`` (MoLA, MixLoRA).

    ``torch.where`` has a data-dependent shape: on a GPU the host waits once per expert.
    """

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """Map ``[T, d_in]`` and gates ``[T, N]`` to ``[T, d_out]``."""
        y = self.base(x)
        gates = gates.to(y.dtype)
        delta = torch.zeros_like(y)
        for number in range(self.num_experts):
            (frames,) = torch.where(gates[:, number] > 0)
            part = self.up[number](self.down[number](x[frames]))
            part = part * (self.scale * gates[frames, number, None])
            delta.index_add_(0, frames, part.to(delta.dtype))
        return y + delta


class DenseLoop(PeerExperts):
    """Every expert on every frame, weighted and summed one by one (LoRAMoE)."""

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """Map ``[T, d_in]`` and gates ``[T, N]`` to ``[T, d_out]``."""
        y = self.base(x)
        gates = gates.to(y.dtype)
        for number in range(self.num_experts):
            part = self.up[number](self.down[number](x))
            y = y + gates[:, number, None] * part * self.scale
        return y


class StackedEinsum(PeerExperts):
    """Stack the weights in every forward pass, then three einsums (PEFT's Arrow).

    The second one builds ``[T, N, d_out]``.
    """

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """Map ``[T, d_in]`` and gates ``[T, N]`` to ``[T, d_out]``."""
        y = self.base(x)
        down = torch.stack([linear.weight for linear in self.down])
        up = torch.stack([linear.weight for linear in self.up])
        z = torch.einsum("td,nrd->tnr", x, down)
        parts = torch.einsum("tnr,nor->tno", z, up)
        return y + self.scale * torch.einsum("tn,tno->to", gates.to(y.dtype), parts)


class Routed(nn.Module):
    """A router and what it serves: one Linear, or the two Linears of an FFN.

    Args:
        router: ``None`` for forms without experts.
        linears: Modules called with (x, gates); GELU stands between two.
    """

    def __init__(self, router: nn.Module | None, *linears: nn.Module) -> None:
        super().__init__()
        self.router = router
        self.linears = nn.ModuleList(linears)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[T, d]`` to ``[T, d_out]``."""
        gates = None if self.router is None else self.router(x)[0]
        for number, linear in enumerate(self.linears):
            x = linear(x if number == 0 else F.gelu(x), gates)
        return x


PEERS: dict[str, type[PeerExperts]] = {
    "sparse loop, index_add (MoLA, MixLoRA)": SparseLoop,
    "dense loop (LoRAMoE)": DenseLoop,
    "einsum, stacked weights (PEFT Arrow)": StackedEinsum,
}
