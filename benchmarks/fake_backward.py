"""Autograd's backward pass in Python: the same nodes, gradients, sums and casts."""

from typing import Any

import torch
from torch import Tensor


def run_backward(root: Tensor, gradient: Tensor | None = None, **_: Any) -> None:
    """Run the backward pass of ``root`` as autograd's engine does.

    Gradients go into ``.grad`` of the leaves. Hooks on tensors and nodes are not run.
    """
    counts = _incoming(root.grad_fn)
    gradients: dict[Any, dict[int, Tensor]] = {}
    with torch.no_grad():
        first = torch.ones_like(root) if gradient is None else gradient
        gradients[root.grad_fn] = {root.output_nr: first}
        ready = [root.grad_fn]
        while ready:
            node = ready.pop()
            for (following, number), found in _apply(node, gradients.pop(node, {})):
                if found is not None:
                    found = _fitted(found, following, number)
                    inputs = gradients.setdefault(following, {})
                    before = inputs.get(number)
                    inputs[number] = found if before is None else before + found
                counts[following] -= 1
                if not counts[following]:
                    ready.append(following)


def _incoming(root: Any) -> dict[Any, int]:
    """Edges that lead to each node."""
    counts: dict[Any, int] = {root: 0}
    stack = [root]
    while stack:
        for following, _ in stack.pop().next_functions:
            if following is None:
                continue
            if following not in counts:
                counts[following] = 0
                stack.append(following)
            counts[following] += 1
    return counts


def _apply(node: Any, given: dict[int, Tensor]) -> list[tuple[tuple, Tensor | None]]:
    """Edges of a node with the gradients that it sends along them."""
    edges = list(node.next_functions)
    real = [edge for edge in edges if edge[0] is not None]
    if not given:
        return [(edge, None) for edge in real]
    if type(node).__name__ == "AccumulateGrad":
        _accumulate(node.variable, given[0])
        return []
    inputs = [given.get(number) for number in range(len(node._input_metadata))]
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        if getattr(node, "materialize_grads", True):
            for number, metadata in enumerate(node._input_metadata):
                if inputs[number] is None:
                    inputs[number] = torch.zeros(
                        metadata.shape, dtype=metadata.dtype, device=metadata.device
                    )
        found = node.apply(*inputs)
        found = found if isinstance(found, tuple) else (found,)
        # Arguments that are no tensors have no edge.
        needed = [g for g, n in zip(found, node.needs_input_grad, strict=False) if n]
        return list(zip(real, needed, strict=True))
    found = node(*inputs)
    found = found if isinstance(found, tuple | list) else (found,)
    return [
        (edge, sent)
        for edge, sent in zip(edges, found, strict=True)
        if edge[0] is not None
    ]


def _fitted(gradient: Tensor, node: Any, number: int) -> Tensor:
    """Give a gradient the shape and dtype of what it belongs to, as the engine does."""
    leaf = type(node).__name__ == "AccumulateGrad"
    target = node.variable if leaf else node._input_metadata[number]
    if gradient.shape != torch.Size(target.shape):
        gradient = gradient.sum_to_size(target.shape)
    return gradient.to(target.dtype)


def _accumulate(leaf: Tensor, gradient: Tensor) -> None:
    if leaf.grad is not None:
        leaf.grad.add_(gradient)
    elif gradient.stride() == leaf.stride():
        leaf.grad = gradient.detach()
    else:
        # The optimizers' fast ways want both laid out alike.
        copy = torch.empty_strided(
            leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device
        )
        leaf.grad = copy.copy_(gradient)
