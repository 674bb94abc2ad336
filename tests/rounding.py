"""How far two ways of computing one product may lie apart, whatever the CPU."""

import torch
from torch import Tensor


def product_bound(x: Tensor, weight: Tensor) -> Tensor:
    """Bound the difference of two evaluations of ``x @ weight.T``.

    A sum of n products in any order, fused or not, is off by at most gamma_n |x| |w|,
    gamma_n = n u / (1 - n u), u the unit roundoff (Higham, Accuracy and Stability of
    Numerical Algorithms, 2nd ed., Eq. 3.5); two of them are twice that apart.

    Args:
        x: ``[..., n]``.
        weight: ``[m, n]`` of the same type.

    Returns:
        ``[..., m]`` in float64.
    """
    count = x.shape[-1] * torch.finfo(x.dtype).eps / 2
    size = x.detach().double().abs() @ weight.detach().double().abs().T
    return 2 * count / (1 - count) * size
