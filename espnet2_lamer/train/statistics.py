"""Weighted means of a step's figures over ranks, in one message."""

import torch
from torch import Tensor

from espnet2_lamer.hubert.distributed import global_sums


def average_figures(
    figures: dict[str, Tensor | float | None], weight: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Average a step's figures over ranks by weight; NaN counts for nothing.

    Args:
        figures: Names to scalars, the same names on every rank; ``None`` is left out.
        weight: Scalar weight of this rank.

    Returns:
        Means as scalars on ``weight``'s device (NaN where no rank has a value), and
        the sum of the weights.
    """
    weight = weight.detach().reshape(()).float()
    named = {k: v for k, v in figures.items() if v is not None}
    if not named:
        return {}, global_sums([weight])[0]
    values = torch.stack(
        [
            torch.as_tensor(v, dtype=torch.float32, device=weight.device).reshape(())
            for v in named.values()
        ]
    )
    known = ~values.isnan()
    sums, weights, total = global_sums(
        [values.masked_fill(~known, 0.0) * weight, known * weight, weight]
    )
    return dict(zip(named, (sums / weights).unbind(), strict=True)), total


def to_floats(figures: dict[str, Tensor]) -> dict[str, float]:
    """Copy scalars to the host in one transfer."""
    if not figures:
        return {}
    return dict(zip(figures, torch.stack(list(figures.values())).tolist(), strict=True))
