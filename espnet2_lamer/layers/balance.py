"""Load balancing between experts (Lamer-SSL, Eq. 7) and its statistics."""

import torch
from torch import Tensor


def routing_sums(
    probs: Tensor, gates: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum routing probabilities and count dispatched frames per expert.

    Args:
        probs: Router probabilities ``[..., T, N]``.
        gates: Expert weights ``[..., T, N]``; an expert is dispatched to where > 0.
        mask: Real frames, ``True`` = real, of the trailing shape before N (``[B, T]``
            for ``[B, T, N]`` or, of several routers, ``[L, B, T, N]``); ``None`` = all
            frames.

    Returns:
        Sums ``[N]`` (``[L, N]``) with gradient, counts of the same shape without.
    """
    used = (gates.detach() > 0).to(probs.dtype)
    if mask is None:
        frames = tuple(range(probs.dim() - 1))
    else:
        # Replacing (not multiplying) keeps a NaN in padding out of the sums; unlike
        # indexing it asks the device for no count.
        padding = ~mask.unsqueeze(-1)
        probs, used = probs.masked_fill(padding, 0.0), used.masked_fill(padding, 0.0)
        frames = tuple(range(-1 - mask.dim(), -1))
    return probs.sum(frames), used.sum(frames)


def routing_means(
    probs: Tensor, gates: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean routing probability and dispatch share per expert over real frames.

    Args:
        probs: Router probabilities ``[..., N]``.
        gates: Expert weights ``[..., N]``.
        mask: Real frames ``[...]``, ``True`` = real; ``None`` = all.

    Returns:
        ``m [N]`` with gradient, ``f [N]`` without, both summing to 1.
    """
    sums, counts = routing_sums(probs, gates, mask)
    frames = probs[..., 0].numel() if mask is None else mask.sum()
    return sums / frames, counts / counts.sum().clamp(min=1.0)


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
