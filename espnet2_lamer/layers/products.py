"""Products of experts and routers, with their gradients, in as few passes as can be."""

import torch
from torch import Tensor
from torch.nn import functional as F

from espnet2_lamer.layers.working import parts_of


def gated(z: Tensor, gates: Tensor | None, scale: float) -> Tensor:
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


def merged(z: Tensor, gates: Tensor | None, scale: float) -> Tensor:
    r"""Take ``z = A x``, ``[..., N * r]``, to what B of all experts makes the merged.

    .. math::
        \Bigl(\sum_j g_j B_j\Bigr) \Bigl(\sum_k g_k A_k\Bigr) x
        = \sum_j B_j \Bigl(g_j \sum_k g_k A_k x\Bigr)

    so rows of different utterances, whose ``gates [..., N]`` differ, stay one product
    with A and one with B, and no merged matrix is built.
    """
    if gates is None:
        return gated(z, None, scale)
    per_expert = z.unflatten(-1, (gates.shape[-1], -1))  # [..., N, r]
    weights = gates.unsqueeze(-1)
    inner = (per_expert * weights.to(z.dtype)).sum(-2, keepdim=True)
    return (inner * (scale * weights).to(z.dtype)).flatten(-2)


def adapted_linear(
    x: Tensor,
    dropped: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    gates: Tensor | None,
    scale: float,
    merges: bool = False,
) -> Tensor:
    r"""A Linear and its experts over rows.

    .. math:: y = W x + b + B (g \odot A d)

    ``x [R, d_in]``, ``dropped`` is d, ``x`` itself or after dropout, all matrices as
    :class:`~espnet2_lamer.layers.LoRAExpertLinear` stacks them and in the type of
    ``x``, ``gates [R, N]`` or ``None``; returns ``[R, d_out]``. With
    ``merges`` the experts are averaged to one, see :func:`merged`.
    """
    if merges or torch.compiler.is_compiling():
        # The compiler plans the passes itself; merging is left to autograd.
        z = (merged if merges else gated)(F.linear(dropped, a), gates, scale)
        return F.linear(x, weight, bias) + F.linear(z, b)
    d = None if dropped is x else dropped
    return _AdaptedLinear.apply(x, d, weight, bias, a, b, gates, scale)


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
        zg = gated(z, gates, scale)
        y.addmm_(zg, b.t())
        ctx.save_for_backward(x, d, weight, a, b, gates, z, zg)
        ctx.scale, ctx.has_bias = scale, bias is not None
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, d, weight, a, b, gates, z, zg = ctx.saved_tensors
        need_x, need_d, need_weight, need_bias, need_a, need_b, need_gates, _ = (
            ctx.needs_input_grad
        )
        grad_x = grad_d = grad_a = grad_gates = None
        if need_x or need_d or need_a or need_gates:
            grad_gated = grad @ b  # [R, N * r]
            grad_z = gated(grad_gated, gates, ctx.scale)
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
        grad_b = grad.t() @ zg if need_b else None
        grad_weight = grad.t() @ x if need_weight else None
        grad_bias = grad.sum(0) if need_bias else None
        return (
            *(grad_x, grad_d, grad_weight, grad_bias),
            *(grad_a, grad_b, grad_gates, None),
        )


def float32_product(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` in float32, whatever the type of ``x [..., D]``."""
    if x.dtype == torch.float32:
        return x @ weight.float().t()
    return _Float32Product.apply(x, weight, parts_of(weight))


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
