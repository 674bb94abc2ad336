"""Figures over seeds and utterances: hierarchical bootstrap, paired tests."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import sqrt
from statistics import fmean, stdev
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from espnet2_lamer.metrics.bootstrap import RESAMPLES, Difference, central, two_sided
from espnet2_lamer.metrics.measure import Measure, Parts


class OneFigure(Protocol):
    """A figure of one training: its value, and its parts where it is a rate."""

    value: float
    parts: Parts


#: One figure of each seed; several measures stand for their mean (an average).
BySeed = Mapping[int, Sequence[OneFigure]]


def means(figures: BySeed) -> dict[int, float]:
    """Return the value of each seed, in order."""
    return {seed: fmean(m.value for m in figures[seed]) for seed in sorted(figures)}


def summarise(figures: BySeed, resamples: int = RESAMPLES, seed: int = 0) -> Measure:
    """Summarise a figure over seeds: mean, deviation, interval.

    The interval is of :func:`resampled_means`, None for a figure without utterances
    measured with one seed.

    Raises:
        ValueError: There are no seeds.
    """
    values = list(means(figures).values())
    draws = resampled_means([figures[s] for s in sorted(figures)], resamples, seed)
    return Measure(
        value=fmean(values),
        interval=None if draws is None else central(draws),
        seeds=len(values),
        deviation=stdev(values) if len(values) > 1 else None,
    )


def compare(
    figures: BySeed, baseline: BySeed, resamples: int = RESAMPLES, seed: int = 0
) -> Difference | None:
    """Compare two systems on the seeds that both have.

    Both are evaluated on the same draws of seeds and utterances; the p-value is
    :func:`~espnet2_lamer.metrics.bootstrap.two_sided`.

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
    our_means, their_means = means(figures), means(baseline)
    values = [our_means[s] - their_means[s] for s in seeds]
    mine_draws = resampled_means(mine, resamples, seed)
    their_draws = resampled_means(theirs, resamples, seed)
    interval = p = effect = p_seeds = None
    if mine_draws is not None and their_draws is not None:
        differences = mine_draws - their_draws
        interval, p = central(differences), two_sided(differences)
    if len(values) > 1 and stdev(values) > 0:
        from scipy.stats import ttest_1samp

        effect = fmean(values) / stdev(values)
        p_seeds = float(ttest_1samp(values, 0.0).pvalue)
    return Difference(
        fmean(values), interval, p, seeds=seeds, effect=effect, p_seeds=p_seeds
    )


def resampled_means(
    figures: Sequence[Sequence[OneFigure]], resamples: int = RESAMPLES, seed: int = 0
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
        rates = np.array([[m.value for m in column]])  # [1, S]
        if with_parts:
            utts = sorted(column[0].parts)
            if any(sorted(m.parts) != utts for m in column):
                raise ValueError("the seeds are not over the same utterances")
            parts = np.array([[m.parts[u] for u in utts] for m in column])  # [S, U, 2]
            drawn = _counts(seed, 1 + g, len(utts), resamples)  # [R, U]
            errors, lengths = drawn @ parts[:, :, 0].T, drawn @ parts[:, :, 1].T
            rates = 100 * errors / lengths  # [R, S]
        mean = rates.mean(axis=1)
        total += mean + stretch * ((weights * rates).sum(axis=1) - mean)
    return total / groups


def _stretch(seeds: int) -> float:
    """c_S of :func:`resampled_means`; 1 for one seed, which does not vary."""
    from scipy.stats import norm, t

    if seeds == 1:
        return 1.0
    return sqrt(seeds / (seeds - 1)) * t.ppf(0.975, seeds - 1) / norm.ppf(0.975)


# Tables ask for the same draws hundreds of times.
@lru_cache(maxsize=64)
def _counts(seed: int, stream: int, items: int, resamples: int) -> NDArray[np.float64]:
    """How often each of ``items`` is drawn in each resample ``[R, items]``."""
    rng = np.random.default_rng([seed, stream])
    counts = rng.multinomial(items, np.full(items, 1 / items), size=resamples)
    return counts.astype(np.float64)
