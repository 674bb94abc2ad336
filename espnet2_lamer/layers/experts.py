"""A layer's experts: N gated LoRAs in one fused form, and the router that gates them.

Lamer-SSL, Eq. 1, 2 and 5, and Eq. 3 and 4.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet2_lamer.layers.config import check_values
from espnet2_lamer.layers.products import (
    adapted_linear,
    float32_product,
    gated,
    merged,
)
from espnet2_lamer.layers.working import autocast_type, in_type


class LoRAExperts(nn.Module):
    r"""A gated sum of N low-rank experts.

    .. math:: \Delta(x) = \frac{\alpha}{r} \sum_{k=1}^{N} g_k B_k A_k x

    All experts are computed by two matrix products, whatever N is: the A matrices are
    stacked to ``[N * r, d_in]``, the ``[..., N, r]`` activations are scaled by the
    gates, and the B matrices stand side by side as ``[d_out, N * r]``. A gate of zero
    removes an expert exactly and its parameters still get a (zero) gradient, so DDP
    needs no search for unused parameters. What is kept for the backward pass is N * r
    wide, not N * d_out.

    With ``merges`` their parameters are averaged, not their outputs, and one expert is
    applied (soft merging, SMEAR, arXiv 2306.03745; of speech, arXiv 2601.19451):

    .. math::
        \Delta(x) = \frac{\alpha}{r} \Bigl(\sum_j g_j B_j\Bigr)
            \Bigl(\sum_k g_k A_k\Bigr) x
            = \frac{\alpha}{r} \sum_{j,k} g_j g_k B_j A_k x

    This is another function than the gated sum: its rank is r, not up to N r, it has
    the products of every B with every A, and gates enter twice. The gates are those of
    the utterance, the same in all of its frames.

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
        merges: bool = False,
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
        self.merges = merges
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

    def _stacked(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A of all experts ``[N * r, d_in]`` and B ``[d_out, N * r]``."""
        a, b = in_type(self.lora_A, dtype), in_type(self.lora_B, dtype)
        return a.flatten(0, 1), b

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """Sum: ``x [..., d_in]``, ``gates [..., N]`` or none, to ``[..., d_out]``."""
        a, b = self._stacked(autocast_type(x))
        z = F.linear(self.dropout(x), a)
        combine = merged if self.merges else gated
        return F.linear(combine(z, gates, self.scale), b)


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
        merges: bool = False,
    ) -> None:
        sizes = base.in_features, base.out_features
        options = num_experts, rank, alpha, dropout, base.weight, merges
        super().__init__(*sizes, *options)
        self.base = base.requires_grad_(False)

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """Map ``x [..., d_in]`` to ``[..., d_out]``, by Linear and experts."""
        dtype = autocast_type(x)
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        if gates is not None:
            gates = gates.reshape(-1, self.num_experts)
        own = in_type(self.base.weight, dtype), in_type(self.base.bias, dtype)
        with torch.autocast(x.device.type, enabled=False):
            given = rows, self.dropout(rows), *own, *self._stacked(dtype)
            y = adapted_linear(*given, gates, self.scale, self.merges)
        return y.view(*x.shape[:-1], y.shape[-1])


class Router(nn.Module):
    r"""Softmax router with Top-K selection.

    .. math::
        p = \mathrm{softmax}(W_r h), \qquad
        R(h)_k = p_k / \sum_{j \in \mathcal{T}(h)} p_j
        \;\text{for}\; k \in \mathcal{T}(h),\; 0 \;\text{otherwise}

    For ``top_k = 1`` the raw probability is kept: Eq. 4 would make the gate 1 and the
    router would get no gradient (a stated departure). ``top_k = None`` or ``top_k =
    num_experts`` uses all experts, so the gates are ``p`` itself (soft routing).

    With ``use_selection_bias`` a persistent per-expert bias is added to ``p`` for the
    selection only (loss-free balancing, arXiv 2408.15664); it is updated from the load
    of the last training batch, which is kept, too.

    Raises:
        ValueError: ``num_experts`` below 2, or ``top_k`` not in 1 .. ``num_experts``.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int | None = 2,
        use_selection_bias: bool = False,
    ) -> None:
        super().__init__()
        if num_experts < 2:
            raise ValueError(
                f"a router needs at least 2 experts to choose from, found {num_experts}"
            )
        right = top_k is None or 1 <= top_k <= num_experts
        most = f"at most {num_experts}, the layer's experts, 1 or more, or None for all"
        check_values("", ("top_k", top_k, right, most))
        self.num_experts = num_experts
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(num_experts, dim))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.selection_bias: Tensor | None
        self.load: Tensor | None
        for name, start in (("selection_bias", 0.0), ("load", 1.0 / num_experts)):
            value = torch.full((num_experts,), start) if use_selection_bias else None
            self.register_buffer(name, value)

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained beside a frozen base, by kind."""
        return {"routers": self.weight}

    @property
    def is_sparse(self) -> bool:
        """Whether some expert is left out for every frame."""
        return self.top_k is not None and self.top_k < self.num_experts

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Route every frame of ``x [..., dim]``.

        Returns:
            gates (zero outside the Top-K) and probs, both ``[..., N]`` float32.
        """
        with torch.autocast(x.device.type, enabled=False):
            scores = float32_product(x, self.weight)
            probs = torch.softmax(scores, dim=-1)
        if not self.is_sparse:
            return probs, probs
        scores = probs.detach()
        if self.selection_bias is not None:
            scores = scores + self.selection_bias
        chosen = scores.topk(self.top_k, dim=-1).indices
        kept = probs.gather(-1, chosen)
        if self.top_k > 1:
            kept = kept / kept.sum(-1, keepdim=True)
        gates = torch.zeros_like(probs).scatter(-1, chosen, kept)
        return gates, probs

    @torch.no_grad()
    def update_selection_bias(self, rate: float = 1e-3) -> None:
        """Raise the bias of experts below their share of ``load``, lower the others'.

        To be called before a training batch, with ``load [N]`` (shares of dispatched
        frames, summing to 1) of the batch before: between a forward pass and its
        backward pass the bias must stay, or recomputed layers would route otherwise.
        """
        if self.selection_bias is not None:
            self.selection_bias += rate * torch.sign(1.0 / self.num_experts - self.load)
