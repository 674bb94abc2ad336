"""How norms grow in training: a power of the learning rate, added up over updates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Fewest points of a fit; without as many, and as many held out, nothing is predicted.
FEWEST = 4
#: Points before this share of the last one's rate sum are left out of a fit: B starts
#: at zero and A does not, so growth begins by another law.
BEGINNING = 1 / 8


@dataclass(frozen=True)
class Growth:
    r"""A norm as a power of the rate sum, :math:`s(u) = c \, R(u)^p`.

    R(u) is the sum of the learning rates of updates 1 to u. A step of Adam moves a
    weight by about its rate, whatever the gradient's size: steps that agree make a
    weight grow as R, steps that do not as its square root, and an expert's update is
    the product of two matrices. So p is at most about 2; weight decay and a fading
    gradient lower it.

    ``miss`` is how far a fit to the first half was off on the second (largest
    :math:`|\ln(s / \hat s)|`), ``reach`` how far that was ahead (ln of the ratio of
    rate sums), ``last`` the rate sum of the last point.
    """

    factor: float
    power: float
    miss: float
    reach: float
    last: float

    def at(self, rate_sum: float) -> float:
        """Predict the norm at a rate sum."""
        return self.factor * rate_sum**self.power

    def interval(self, rate_sum: float) -> tuple[float, float]:
        """Bounds of :meth:`at`.

        The held-out miss, larger in proportion where the prediction is further ahead
        than the held-out half was. No probability is claimed.
        """
        ahead = math.log(max(rate_sum / self.last, 1.0)) / self.reach
        spread = math.exp(self.miss * max(ahead, 1.0))
        return self.at(rate_sum) / spread, self.at(rate_sum) * spread


def fit_growth(rate_sums: Sequence[float], norms: Sequence[float]) -> Growth | None:
    """Fit :class:`Growth` to points in the order of training.

    The first fit, to points up to half of the last rate sum, is tested on those behind
    it; the fit that predicts has all. ``None`` where :data:`FEWEST` points are not
    there for each.
    """
    x, y = np.asarray(rate_sums, np.float64), np.asarray(norms, np.float64)
    usable = (x > 0) & (y > 0) & np.isfinite(y)
    x, y = np.log(x[usable]), np.log(y[usable])
    if not len(x):
        return None
    middle = x[-1] - math.log(2.0)
    first = (x <= middle) & (x >= middle + math.log(BEGINNING))
    behind = x > middle
    if min(first.sum(), behind.sum()) < FEWEST:
        return None
    held_out = y[behind] - _line(x[first], y[first], x[behind])
    recent = x >= x[-1] + math.log(BEGINNING)
    power, level = np.polyfit(x[recent], y[recent], 1)
    return Growth(
        float(np.exp(level)),
        float(power),
        float(np.abs(held_out).max()),
        math.log(2.0),
        float(np.exp(x[-1])),
    )


def _line(
    x: NDArray[np.float64], y: NDArray[np.float64], at: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.polyval(np.polyfit(x, y, 1), at)


def add_up_rates(updates: Sequence[int], rates: Sequence[float]) -> list[float]:
    """Add up rates of which only some are known, by straight lines between them.

    Before the first, the rate is taken to have risen from 0, as warm-up does.
    """
    steps = np.diff([0, *updates])
    means = np.array([0.0, *rates[:-1]]) + np.asarray(rates, np.float64)
    return np.cumsum(steps * means / 2).tolist()
