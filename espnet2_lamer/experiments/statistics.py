"""Figures over seeds and utterances: mean, deviation, bootstrap, paired tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from espnet2_lamer.experiments.measures import CellMeasure
from espnet2_lamer.metrics.bootstrap import RESAMPLES

#: One figure of each seed; several measures stand for their mean (an average).
BySeed = Mapping[int, Sequence[CellMeasure]]


@dataclass(frozen=True)
class Summary:
    """A figure over seeds.

    Attributes:
        seeds: Seeds it is the mean of.
        values: One per seed.
        mean: Their mean.
        deviation: Sample standard deviation over seeds, None for one seed.
        interval: 95 % interval by :func:`resampled_means`; None for a figure without
            utterances measured with one seed.
    """

    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    deviation: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Difference:
    """A figure of one system minus that of another, seed by seed.

    Attributes:
        seeds: Seeds that both have.
        mean: Mean difference.
        interval: 95 % interval of the hierarchical bootstrap, or None as above.
        p: Its two-sided p-value.
        effect: Mean difference over the standard deviation of the differences over
            seeds (Cohen's d of paired values), None for fewer than two seeds.
        p_seeds: p-value of a paired t test over seeds alone, None likewise.
    """

    seeds: tuple[int, ...]
    mean: float
    interval: tuple[float, float] | None
    p: float | None
    effect: float | None
    p_seeds: float | None

    @property
    def told(self) -> bool:
        """Whether a difference was shown: two seeds or more, 0 outside the interval."""
        if self.interval is None or len(self.seeds) < 2:
            return False
        low, high = self.interval
        return not low <= 0 <= high


def summarise(figures: BySeed, resamples: int = RESAMPLES, seed: int = 0) -> Summary:
    """Summarise a figure over seeds.

    Raises:
        ValueError: There are no seeds.
    """
    seeds = tuple(sorted(figures))
    values = tuple(fmean(m.value for m in figures[s]) for s in seeds)
    draws = resampled_means([figures[s] for s in seeds], resamples, seed)
    return Summary(
        seeds=seeds,
        values=values,
        mean=fmean(values),
        deviation=stdev(values) if len(values) > 1 else None,
        interval=None if draws is None else central(draws),
    )


def compare(
    figures: BySeed, baseline: BySeed, resamples: int = RESAMPLES, seed: int = 0
) -> Difference | None:
    r"""Compare two systems on the seeds that both have.

    Both are evaluated on the same draws of seeds and utterances; with R resampled
    differences :math:`\Delta^*`, :math:`p = \min(1, 2 \min((1 + \#\{\Delta^* \ge 0\})
    / (R + 1), (1 + \#\{\Delta^* \le 0\}) / (R + 1)))`.

    Returns:
        The difference; None without a common seed.

    Raises:
        ValueError: A seed's two figures are over different utterances.
    """
    seeds = tuple(sorted(set(figures) & set(baseline)))
    if not seeds:
        return None
    mine, theirs = [figures[s] for s in seeds], [baseline[s] for s in seeds]
    for one, other in zip(mine, theirs, strict=True):
        if [sorted(m.parts) for m in one] != [sorted(m.parts) for m in other]:
            raise ValueError("the two figures are not over the same utterances")
    values = [
        fmean(m.value for m in one) - fmean(m.value for m in other)
        for one, other in zip(mine, theirs, strict=True)
    ]
    mine_draws = resampled_means(mine, resamples, seed)
    their_draws = resampled_means(theirs, resamples, seed)
    interval = p = None
    if mine_draws is not None and their_draws is not None:
        differences = mine_draws - their_draws
        interval, p = central(differences), two_sided(differences)
    effect, p_seeds = _over_seeds(values)
    return Difference(seeds, fmean(values), interval, p, effect, p_seeds)


def resampled_means(
    figures: Sequence[Sequence[CellMeasure]],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> NDArray[np.float64] | None:
    r"""Hierarchical bootstrap of a mean over seeds of rates over utterances.

    Seeds and utterances are crossed: all trainings are tested on the same utterances.
    So each resample draws S seeds and U utterances with replacement, the same
    utterances for all seeds, and computes

    .. math::
        r_s^* &= \frac{1}{G} \sum_{g=1}^{G}
            \frac{\sum_{u \in draw_g} n_{sgu}}{\sum_{u \in draw_g} d_{sgu}} \\
        M^* &= \bar{r}^* + c_S \Big(\frac{1}{S} \sum_{s \in draw} r_s^*
            - \bar{r}^*\Big), \quad
        c_S = \sqrt{\frac{S}{S-1}} \; \frac{t_{S-1}(0.975)}{z(0.975)}

    with :math:`\bar{r}^*` the mean over all S seeds and G > 1 groups (languages) for
    an average, utterances drawn within each. A few drawn seeds vary too little: the
    root mends their variance (rescaling bootstrap, Rao and Wu, 1988), the quotient
    their tails, so that 95 % intervals become Student's over seeds where seeds alone
    vary, and those over utterances where these do. :math:`c_3 = 2.7, c_5 = 1.6`.
    Draws depend on the numbers of seeds and utterances only, so two systems get the
    same. Figures without utterances are drawn over seeds alone.

    Args:
        figures: Per seed the measures whose mean the figure is.
        resamples: Number of resamples R.
        seed: Of the draws.

    Returns:
        ``[R]``; None for one seed without utterances: nothing varies.

    Raises:
        ValueError: No seeds, or they differ in their utterances.
    """
    if not figures:
        raise ValueError("no seeds")
    groups = len(figures[0])
    with_parts = bool(figures[0][0].parts)
    if len(figures) == 1 and not with_parts:
        return None
    weights = _counts(seed, 0, len(figures), resamples) / len(figures)  # [R, S]
    total = np.zeros(resamples)
    stretch = _stretch(len(figures))
    for g in range(groups):
        column = [measures[g] for measures in figures]
        if not with_parts:
            rates = np.array([[m.value for m in column]])  # [1, S]
            total += _spread(weights, rates, stretch)
            continue
        utts = sorted(column[0].parts)
        if any(sorted(m.parts) != utts for m in column):
            raise ValueError("the seeds are not over the same utterances")
        parts = np.array([[m.parts[u] for u in utts] for m in column])  # [S, U, 2]
        drawn = _counts(seed, 1 + g, len(utts), resamples)  # [R, U]
        rates = 100 * (drawn @ parts[:, :, 0].T) / (drawn @ parts[:, :, 1].T)  # [R, S]
        total += _spread(weights, rates, stretch)
    return total / groups


def _spread(
    weights: NDArray[np.float64], rates: NDArray[np.float64], stretch: float
) -> NDArray[np.float64]:
    mean = rates.mean(axis=1)
    return mean + stretch * ((weights * rates).sum(axis=1) - mean)


def _stretch(seeds: int) -> float:
    """Return c_S of :func:`resampled_means`; 1 for one seed, which does not vary."""
    from scipy.stats import norm, t

    if seeds == 1:
        return 1.0
    return sqrt(seeds / (seeds - 1)) * t.ppf(0.975, seeds - 1) / norm.ppf(0.975)


def central(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the central 95 % of resampled values."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def two_sided(differences: NDArray[np.float64]) -> float:
    """Two-sided bootstrap p-value of resampled differences; never 0."""
    above = (1 + np.count_nonzero(differences >= 0)) / (len(differences) + 1)
    below = (1 + np.count_nonzero(differences <= 0)) / (len(differences) + 1)
    return min(1.0, 2 * min(above, below))


# Tables ask for the same draws hundreds of times.
@lru_cache(maxsize=64)
def _counts(seed: int, stream: int, items: int, resamples: int) -> NDArray[np.float64]:
    """How often each of ``items`` is drawn in each resample ``[R, items]``."""
    rng = np.random.default_rng([seed, stream])
    counts = rng.multinomial(items, np.full(items, 1 / items), size=resamples)
    return counts.astype(np.float64)


def _over_seeds(values: Sequence[float]) -> tuple[float | None, float | None]:
    if len(values) < 2 or stdev(values) == 0:
        return None, None
    from scipy.stats import ttest_1samp

    return fmean(values) / stdev(values), float(ttest_1samp(values, 0.0).pvalue)
