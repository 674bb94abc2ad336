"""Load balancing between experts (Lamer-SSL, Eq. 7) and its statistics."""

import torch
from torch import Tensor


def routing_means(
    probs: Tensor, gates: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean routing probability and dispatch share per expert over real frames.

    Args:
        probs: Router probabilities ``[..., N]``.
        gates: Expert weights ``[..., N]``; an expert is dispatched to where > 0.
        mask: Real frames ``[...]``, ``True`` = real; ``None`` = all.

    Returns:
        ``m [N]`` with gradient, ``f [N]`` without, both summing to 1.
    """
    if mask is not None:
        # Selecting (not multiplying) keeps a NaN in padding out of the sums.
        probs, gates = probs[mask], gates[mask]
    num_experts = probs.shape[-1]
    mean_probs = probs.reshape(-1, num_experts).mean(0)
    counts = (gates.detach() > 0).reshape(-1, num_experts).float().sum(0)
    return mean_probs, counts / counts.sum().clamp(min=1.0)


def load_balancing_loss(
    probs: Tensor, gates: Tensor, mask: Tensor | None = None
) -> Tensor:
    r"""Load-balancing loss of one router.

    .. math:: L_{lb} = N \sum_{k=1}^{N} m_k f_k

    with m the mean probability and f the share of dispatched frames, normalised to
    sum 1, so that perfect balance gives 1 whatever K is (Lamer-SSL, Eq. 7).

    Args:
        probs: Router probabilities ``[..., N]``.
        gates: Expert weights ``[..., N]``.
        mask: Real frames ``[...]``, ``True`` = real.

    Returns:
        A float32 scalar.
    """
    mean_probs, share = routing_means(probs, gates, mask)
    return probs.shape[-1] * torch.sum(mean_probs * share)


def importance_loss(probs: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Importance loss :math:`N \sum_k m_k^2`, for soft routing where f is constant."""
    mean_probs, _ = routing_means(probs, probs, mask)
    return probs.shape[-1] * torch.sum(mean_probs**2)
