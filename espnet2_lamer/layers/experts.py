"""A layer's experts: N gated LoRAs in one fused form, and the router that gates them.

Lamer-SSL, Eq. 1, 2 and 5, and Eq. 3 and 4.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet2_lamer.layers.config import check_values
from espnet2_lamer.layers.working import autocast_type, in_type, parts_of


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

    def _stacked(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A of all experts ``[N * r, d_in]`` and B ``[d_out, N * r]``."""
        a, b = (in_type(p, dtype) for p in (self.lora_A, self.lora_B))
        return a.flatten(0, 1), b

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """Sum the experts: ``x [..., d_in]``, ``gates [..., N]`` to ``[..., d_out]``.

        Without gates all are one.
        """
        a, b = self._stacked(autocast_type(x))
        z = F.linear(self.dropout(x), a)
        return F.linear(_gated(z, gates, self.scale), b)


def _gated(z: Tensor, gates: Tensor | None, scale: float) -> Tensor:
    """Multiply ``z [..., N * r]`` by ``gates [..., N]`` and the scale, in z's type."""
    if gates is None:
        return z if scale == 1.0 else scale * z
    # The scale goes where there is least to multiply.
    gates = (gates if scale == 1.0 else scale * gates).unsqueeze(-1)
    per_expert = z.unflatten(-1, (gates.shape[-2], -1))
    if z.is_cuda and gates.dtype != z.dtype and not torch.is_grad_enabled():
        # Float32 gates as they are, and no kernel to round them.
        gated = torch.empty_like(z)
        torch.mul(per_expert, gates, out=gated.view(per_expert.shape))
        return gated
    return (per_expert * gates.to(z.dtype)).flatten(-2)


class _AdaptedLinear(torch.autograd.Function):
    """``x W^T + b + gated(d A^T) B^T`` and its gradients, with as few passes as can be.

    ``d`` is ``x`` after dropout, or ``None`` where that is ``x`` itself. The widest
    tensors, the output and the gradient of the input, are written by one product and
    completed in place by another.
    """

    @staticmethod
    def forward(ctx, x, d, weight, bias, a, b, gates, scale: float) -> Tensor:
        y = F.linear(x, weight, bias)
        z = F.linear(x if d is None else d, a)
        gated = _gated(z, gates, scale)
        y.addmm_(gated, b.t())
        ctx.save_for_backward(x, d, weight, a, b, gates, z, gated)
        ctx.scale, ctx.has_bias = scale, bias is not None
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, d, weight, a, b, gates, z, gated = ctx.saved_tensors
        need_x, need_d, need_weight, need_bias, need_a, need_b, need_gates, _ = (
            ctx.needs_input_grad
        )
        grad_x = grad_d = grad_a = grad_gates = None
        if need_x or need_d or need_a or need_gates:
            grad_gated = grad @ b  # [R, N * r]
            grad_z = _gated(grad_gated, gates, ctx.scale)
        if need_gates:
            products = (grad_gated * z).unflatten(-1, (gates.shape[-1], -1))
            grad_gates = products.sum(-1, dtype=gates.dtype)
            grad_gates = grad_gates if ctx.scale == 1.0 else ctx.scale * grad_gates
        if need_x:
            grad_x = grad @ weight
            if d is None:
                grad_x.addmm_(grad_z, a)
        if d is not None and need_d:
            grad_d = grad_z @ a
        if need_a:
            grad_a = grad_z.t() @ (x if d is None else d)
        grad_b = grad.t() @ gated if need_b else None
        grad_weight = grad.t() @ x if need_weight else None
        grad_bias = grad.sum(0) if need_bias else None
        return (
            *(grad_x, grad_d, grad_weight, grad_bias),
            *(grad_a, grad_b, grad_gates, None),
        )


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
        dtype = autocast_type(x)
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        dropped = None
        if self.training and self.dropout.p > 0:
            dropped = self.dropout(rows)
        if gates is not None:
            gates = gates.reshape(-1, self.num_experts)
        weight, bias = (in_type(p, dtype) for p in (self.base.weight, self.base.bias))
        a, b = self._stacked(dtype)
        with torch.autocast(x.device.type, enabled=False):
            if torch.compiler.is_compiling():
                # The compiler plans the passes itself.
                z = F.linear(rows if dropped is None else dropped, a)
                y = F.linear(rows, weight, bias)
                y = y + F.linear(_gated(z, gates, self.scale), b)
            else:
                y = _AdaptedLinear.apply(
                    rows, dropped, weight, bias, a, b, gates, self.scale
                )
        return y.view(*x.shape[:-1], y.shape[-1])


class _Float32Product(torch.autograd.Function):
    """``x @ weight.T`` in float32 that keeps ``x`` as it came.

    Autograd would keep the float32 copy of a half-precision ``x``: two to four times
    what the experts themselves keep. With the weight's ``parts [N, 3, D]`` in the type
    of ``x`` (see :func:`~espnet2_lamer.layers.working.router_parts`) nothing of that
    size is copied at all; gradients are then products of that type, as all others.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, parts: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, parts)
        if parts is None:
            return x.float() @ weight.float().t()
        scores = wide_product(x.reshape(-1, x.shape[-1]), parts.flatten(0, 1).t())
        scores = scores.view(-1, *parts.shape[:2]).sum(-1)
        return scores.view(*x.shape[:-1], len(parts))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, parts = ctx.saved_tensors
        rows, frames = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grad_x = grad_weight = None
        if parts is not None:
            rows = rows.to(x.dtype)
        if ctx.needs_input_grad[0]:
            first = weight.float() if parts is None else parts[:, 0]
            grad_x = (rows @ first).to(x.dtype).view(x.shape)
        if ctx.needs_input_grad[1]:
            if parts is None:
                grad_weight = (rows.t() @ frames.float()).to(weight.dtype)
            else:
                grad_weight = wide_product(rows.t(), frames)
        return grad_x, grad_weight, None


def wide_product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply half-precision matrices on a GPU; sums and result are float32."""
    return torch.mm(a, b, out_dtype=torch.float32)


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
            if x.dtype == torch.float32:
                scores = x @ self.weight.float().t()
            else:
                scores = _Float32Product.apply(x, self.weight, parts_of(self.weight))
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
