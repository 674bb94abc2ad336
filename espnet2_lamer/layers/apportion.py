"""Spread a number of experts over layers in proportion to weights."""

import math
from collections.abc import Sequence


def apportion(budget: int, weights: Sequence[float], minimum: int = 1) -> list[int]:
    r"""Spread ``budget`` experts over layers in proportion to weights.

    Every layer gets ``minimum``; of the R experts left, layer l gets

    .. math:: \lfloor R w_l / \sum_j w_j \rfloor

    and those still left go to the largest fractions (Hamilton's method), the shallower
    layer first where fractions are equal.

    Raises:
        ValueError: The budget is below the minima, or the weights are none of the kind.
    """
    if budget < minimum * len(weights):
        raise ValueError(
            f"found {budget} experts for {len(weights)} layers, expected at least "
            f"{minimum} each"
        )
    total = math.fsum(weights)
    if not (math.isfinite(total) and total > 0 and min(weights) >= 0):
        raise ValueError(
            f"found weights {list(weights)}, expected numbers of 0 or more, not all 0"
        )
    free = budget - minimum * len(weights)
    shares = [free * weight / total for weight in weights]
    counts = [math.floor(share) for share in shares]
    by_fraction = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    for index in by_fraction[: free - sum(counts)]:
        counts[index] += 1
    return [minimum + count for count in counts]


def apportion_ranks(
    budget: int, weights: Sequence[float], counts: Sequence[int]
) -> list[int]:
    r"""Give each layer a rank, of N_l experts each, in proportion to weights.

    A rank more in layer l costs :math:`N_l` of the ``budget``, which is in components:
    :math:`\sum_l N_l r_l` is at most that, and less only by what no layer costs any
    more. Every layer begins with 1; each further one goes where
    :math:`w_l / (2 r_l + 1)` is largest among the layers that can still be paid
    (Webster's method), the shallower first where equal. Layers without experts, which
    cost nothing, keep 1.

    Raises:
        ValueError: The budget is below one component of every expert.
    """
    left = budget - sum(counts)
    if left < 0:
        raise ValueError(
            f"found {budget} components for {sum(counts)} experts, expected at least "
            "one each; raise rank"
        )
    ranks = [1] * len(counts)
    while paid := [n for n, count in enumerate(counts) if 0 < count <= left]:
        best = max(paid, key=lambda n: (weights[n] / (2 * ranks[n] + 1), -n))
        ranks[best] += 1
        left -= counts[best]
    return ranks
