"""Weights in the type that a forward pass computes in: all copied at once.

Autocast copies each weight where it is met. Here what trains is copied in a few kernels
before the first layer and its gradients in a few after the last; what is frozen may be
kept in that type and is copied never.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Half-precision summands of a float32 weight.
PARTS = 3
_current: dict[nn.Parameter, Tensor] = {}
_current_parts: dict[nn.Parameter, Tensor] = {}


class _Copies(torch.autograd.Function):
    """Copy tensors into another type; gradients come back in the tensors' own."""

    @staticmethod
    def forward(ctx, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.types = [tensor.dtype for tensor in tensors]
        return tuple(_copy(tensors, [dtype] * len(tensors)))

    @staticmethod
    def backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [n for n, grad in enumerate(grads) if grad is not None]
        found = _copy([grads[n] for n in there], [ctx.types[n] for n in there])
        result: list[Tensor | None] = [None] * len(grads)
        for number, grad in zip(there, found, strict=True):
            result[number] = grad
        return None, *result


def _copy(tensors: Iterable[Tensor], types: Iterable[torch.dtype]) -> list[Tensor]:
    tensors = list(tensors)
    pairs = zip(tensors, types, strict=True)
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor, dtype in pairs]
    if tensors:
        # On a GPU one kernel for many tensors.
        torch._foreach_copy_(copies, tensors)
    return copies


@contextmanager
def working_copies(
    parameters: Iterable[nn.Parameter], dtype: torch.dtype | None
) -> Iterator[Mapping[nn.Parameter, Tensor]]:
    """Let :func:`in_type` find copies in ``dtype`` inside the block, with gradients.

    ``None`` leaves every weight as it is. What has the type already is not copied.
    """
    made: dict[nn.Parameter, Tensor] = {}
    if dtype is not None and not torch.compiler.is_compiling():
        others = [p for p in parameters if p.is_floating_point() and p.dtype != dtype]
        # Apart, or the copies of what is frozen would have gradients, too.
        for trains in (False, True):
            some = [p for p in others if p.requires_grad is trains]
            if some:
                made |= zip(some, _Copies.apply(dtype, *some), strict=True)
    with using(made):
        yield made


@contextmanager
def using(copies: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Let :func:`in_type` find these copies, as when a layer is computed once more."""
    global _current
    before, _current = _current, dict(copies)
    try:
        yield
    finally:
        _current = before


@contextmanager
def router_parts(
    weights: Iterable[nn.Parameter], dtype: torch.dtype | None
) -> Iterator[None]:
    """Split float32 weights ``[N, D]`` of routers on a GPU into half-precision parts.

    .. math:: W = W_1 + W_2 + W_3

    to 24 bits for bf16, so that products with half-precision frames that are summed in
    float32 equal those of float32 frames, which then need no copy. Nothing is split
    where ``dtype`` is ``None``, and on a CPU, which has no such product.
    """
    global _current_parts
    weights = [w for w in weights if w.is_cuda and w.dtype == torch.float32]
    before, _current_parts = _current_parts, {}
    if dtype is not None and weights and not torch.compiler.is_compiling():
        with torch.no_grad():
            rest, parts = torch.cat(weights), []
            for _ in range(PARTS):
                parts.append(rest.to(dtype))
                rest = rest - parts[-1]
            every = torch.stack(parts, 1).split([len(w) for w in weights])
        _current_parts = dict(zip(weights, every, strict=True))
    try:
        yield
    finally:
        _current_parts = before


def parts_of(weight: nn.Parameter) -> Tensor | None:
    """Return ``[N, 3, D]`` where :func:`router_parts` split this weight."""
    return None if torch.compiler.is_compiling() else _current_parts.get(weight)


def in_type(parameter: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a weight in ``dtype``: itself, its working copy, or a copy for now."""
    if parameter is None or parameter.dtype == dtype:
        return parameter
    if not torch.compiler.is_compiling():
        copy = _current.get(parameter)
        if copy is not None and copy.dtype == dtype:
            return copy
    return parameter.to(dtype)


def linear(module: nn.Linear, x: Tensor) -> Tensor:
    """Apply a Linear in the type of ``x``."""
    bias = in_type(module.bias, x.dtype)
    return F.linear(x, in_type(module.weight, x.dtype), bias)


def layer_norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    """Apply a LayerNorm to ``x`` in its own type; statistics are float32 in any."""
    weight, bias = (in_type(p, x.dtype) for p in (module.weight, module.bias))
    return F.layer_norm(x, module.normalized_shape, weight, bias, module.eps)


def autocast_type(x: Tensor) -> torch.dtype:
    """The type that a product of ``x`` has: autocast's where that is on."""
    if torch.is_autocast_enabled(x.device.type) and x.is_floating_point():
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
