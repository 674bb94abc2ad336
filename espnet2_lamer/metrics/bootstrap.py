"""How sure a number is: bootstrap intervals, paired bootstrap, McNemar's test."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
# As committed figures have it: not 0.025 to the last digit.
_TAILS = ((1 - 0.95) / 2, (1 + 0.95) / 2)
# Bounds the index matrix of one block of resamples to about 16 MB.
_BLOCK_ELEMENTS = 2_000_000


@dataclass(frozen=True)
class Difference:
    """A figure of one system minus that of another.

    Attributes:
        interval: Its 95 % interval, or None when it was not estimated.
        p: p-value of "the two are equal", or None.
        test: Name of the test that gave ``p``.
        seeds: Seeds that both have, where the mean over seeds is compared.
        effect: Mean difference over the standard deviation of the differences over
            seeds (Cohen's d of paired values), None for fewer than two seeds.
        p_seeds: p-value of a paired t test over seeds alone, None likewise.
    """

    value: float
    interval: tuple[float, float] | None = None
    p: float | None = None
    test: str = ""
    reference: str = ""
    seeds: tuple[int, ...] = ()
    effect: float | None = None
    p_seeds: float | None = None

    @property
    def told(self) -> bool:
        """Whether a difference was shown: two seeds or more, 0 outside the interval."""
        if self.interval is None or len(self.seeds) < 2:
            return False
        low, high = self.interval
        return not low <= 0 <= high

    def reversed(self) -> "Difference":
        """Return the second figure minus the first; p-values are two-sided and stay."""
        interval = self.interval and tuple(0.0 - end for end in self.interval[::-1])
        effect = None if self.effect is None else 0.0 - self.effect
        return replace(self, value=0.0 - self.value, interval=interval, effect=effect)


def rate_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    r"""Percentile bootstrap 95 % interval of a corpus-level rate over utterances.

    With errors :math:`e_u` and reference lengths :math:`n_u > 0` of utterance u, each
    resample draws as many utterances as there are, with replacement, and computes

    .. math:: W^* = \sum_{u \in draw} e_u \Big/ \sum_{u \in draw} n_u ;

    the interval, as fractions, holds the central 95 % of the :math:`W^*` (Bisani and
    Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation",
    ICASSP 2004).
    """
    return central(_rates(numerators, denominators, resamples, seed), *_TAILS)


def paired_bootstrap(
    numerators: ArrayLike,
    baseline_numerators: ArrayLike,
    denominators: ArrayLike,
    resamples: int = RESAMPLES,
) -> Difference:
    r"""Test whether a system's rate differs from a baseline's on the same utterances.

    Both systems are evaluated on the same draw of utterances (Bisani and Ney, 2004):

    .. math::
        \Delta^* = \sum_{u \in draw} (e_u - b_u) \Big/ \sum_{u \in draw} n_u .

    The difference is of fractions, with :func:`two_sided` as p.
    """
    extra = np.asarray(numerators, np.float64) - np.asarray(baseline_numerators)
    draws = _rates(extra, denominators, resamples, 0)
    return _tested(float(extra.sum() / np.sum(denominators)), draws)


def macro_interval(groups: Sequence[ArrayLike], seed: int = 0) -> tuple[float, float]:
    r"""Percentile bootstrap 95 % interval of a mean of group means.

    With values :math:`r_{gu}` of utterance u in group (language) g of G, utterances
    are drawn within each group, whose number of utterances is part of the test set:

    .. math:: M^* = \frac{1}{G} \sum_g \frac{1}{n_g} \sum_{u \in draw_g} r_{gu} .
    """
    return central(_macro_means(groups, seed), *_TAILS)


def paired_macro_bootstrap(
    groups: Sequence[ArrayLike], baseline_groups: Sequence[ArrayLike]
) -> Difference:
    """Test whether a mean of group means differs from a baseline's.

    Both are evaluated on the same draws of utterances within groups, whose values are
    in the same order.
    """
    extra = [
        np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
        for ours, theirs in zip(groups, baseline_groups, strict=True)
    ]
    draws = _macro_means(extra, 0)
    return _tested(float(np.mean([g.mean() for g in extra])), draws)


def two_sided(differences: NDArray[np.float64]) -> float:
    r"""Two-sided p-value of R resampled differences :math:`\Delta^*`.

    .. math::
        p = \min\Big(1, 2 \min\Big(\frac{1 + \#\{\Delta^* \ge 0\}}{R + 1},
            \frac{1 + \#\{\Delta^* \le 0\}}{R + 1}\Big)\Big) ,

    so it is never 0, and it is 1 for identical systems.
    """
    above = (1 + np.count_nonzero(differences >= 0)) / (len(differences) + 1)
    below = (1 + np.count_nonzero(differences <= 0)) / (len(differences) + 1)
    return min(1.0, 2 * min(above, below))


def central(
    values: NDArray[np.float64], low: float = 0.025, high: float = 0.975
) -> tuple[float, float]:
    """Return the bounds of the central part of resampled values."""
    first, last = np.quantile(values, [low, high])
    return float(first), float(last)


def mcnemar_exact(correct: ArrayLike, baseline_correct: ArrayLike) -> float:
    r"""Exact two-sided McNemar test of two classifiers on the same utterances.

    With b utterances that only the system and c that only the baseline has right,
    under equal accuracy b is binomial with b + c trials of probability 1/2:

    .. math:: p = \min\Big(1, 2 \sum_{i=0}^{\min(b, c)} \binom{b+c}{i} 2^{-(b+c)}\Big)
    """
    from scipy.stats import binomtest

    system = np.asarray(correct, dtype=bool)
    baseline = np.asarray(baseline_correct, dtype=bool)
    only_system = int(np.count_nonzero(system & ~baseline))
    only_baseline = int(np.count_nonzero(baseline & ~system))
    if only_system + only_baseline == 0:
        return 1.0
    return float(binomtest(only_system, only_system + only_baseline).pvalue)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson 95 % score interval of a proportion, as fractions."""
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _rates(
    numerators: ArrayLike, denominators: ArrayLike, resamples: int, seed: int
) -> NDArray[np.float64]:
    """Rate of each resample of utterances, ``[resamples]``."""
    errors = np.asarray(numerators, dtype=np.float64)
    lengths = np.asarray(denominators, dtype=np.float64)
    draws = _draws(len(errors), resamples, seed)
    return np.concatenate(
        [errors[draw].sum(axis=1) / lengths[draw].sum(axis=1) for draw in draws]
    )


def _macro_means(groups: Sequence[ArrayLike], seed: int) -> NDArray[np.float64]:
    total = np.zeros(RESAMPLES)
    for number, group in enumerate(groups):
        values = np.asarray(group, dtype=np.float64)
        # A stream of draws per group: the same for every system that is compared.
        draws = _draws(len(values), RESAMPLES, [seed, number])
        total += np.concatenate([values[draw].mean(axis=1) for draw in draws])
    return total / len(groups)


def _tested(value: float, draws: NDArray[np.float64]) -> Difference:
    interval = central(draws, *_TAILS)
    return Difference(value, interval, two_sided(draws), "paired bootstrap")


def _draws(
    utterances: int, resamples: int, seed: int | list[int]
) -> Iterator[NDArray[np.int64]]:
    """Yield blocks ``[resamples in block, utterances]`` of drawn indices."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_ELEMENTS // utterances)
    for start in range(0, resamples, block):
        yield rng.integers(utterances, size=(min(block, resamples - start), utterances))
