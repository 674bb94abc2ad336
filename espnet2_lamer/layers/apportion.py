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
