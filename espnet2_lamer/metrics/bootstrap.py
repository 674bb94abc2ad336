"""How sure a number is: bootstrap intervals, paired bootstrap, McNemar's test."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
# Bounds the index matrix of one block of resamples to about 16 MB.
_BLOCK_ELEMENTS = 2_000_000


@dataclass(frozen=True)
class PairedTest:
    """Outcome of a paired bootstrap test of a system against a baseline.

    Attributes:
        difference: Rate of the system minus rate of the baseline, as a fraction.
        interval: 95 % interval of the difference.
        p_two_sided: p-value of "the two rates are equal".
        p_less: p-value of "the system's rate is not below the baseline's".
    """

    difference: float
    interval: tuple[float, float]
    p_two_sided: float
    p_less: float


def rate_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    r"""Percentile bootstrap interval of a corpus-level rate over utterances.

    With errors :math:`e_u` and reference lengths :math:`n_u` of utterance u, each
    resample draws as many utterances as there are, with replacement, and computes

    .. math:: W^* = \sum_{u \in draw} e_u \Big/ \sum_{u \in draw} n_u ;

    the interval holds the central ``level`` of the :math:`W^*` (Bisani and Ney,
    "Bootstrap estimates for confidence intervals in ASR performance evaluation",
    ICASSP 2004).

    Args:
        numerators: Per-utterance errors (or correct items), ``[utterances]``.
        denominators: Per-utterance reference lengths, ``[utterances]``; sum > 0 in
            every resample, so none may be zero.
        resamples: Number of resamples.
        seed: Seed of the draws.
        level: Coverage aimed at.

    Returns:
        Lower and upper bound as fractions.

    Raises:
        ValueError: No utterances, unequal lengths, or a denominator below one.
    """
    errors, lengths = _checked(numerators, denominators)
    rates = np.concatenate(
        [
            errors[draw].sum(axis=1) / lengths[draw].sum(axis=1)
            for draw in _draws(len(errors), resamples, seed)
        ]
    )
    return _central(rates, level)


def paired_bootstrap(
    numerators: ArrayLike,
    baseline_numerators: ArrayLike,
    denominators: ArrayLike,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedTest:
    r"""Test whether a system's rate differs from a baseline's on the same utterances.

    Both systems are evaluated on the same draw of utterances (Bisani and Ney, 2004):

    .. math::
        \Delta^* = \sum_{u \in draw} (e_u - b_u) \Big/ \sum_{u \in draw} n_u .

    With R resamples, :math:`p_{less} = (1 + \#\{\Delta^* \ge 0\}) / (R + 1)`,
    :math:`p_{greater}` likewise with :math:`\le`, and the two-sided
    :math:`p = \min(1, 2 \min(p_{less}, p_{greater}))`; so p is never 0, and it is 1
    for identical systems.

    Args:
        numerators: Per-utterance errors of the system, ``[utterances]``.
        baseline_numerators: Those of the baseline, in the same order.
        denominators: Per-utterance reference lengths.
        resamples: Number of resamples R.
        seed: Seed of the draws.

    Raises:
        ValueError: As in :func:`rate_interval`.
    """
    errors, lengths = _checked(numerators, denominators)
    baseline, _ = _checked(baseline_numerators, denominators)
    extra = errors - baseline
    differences = np.concatenate(
        [
            extra[draw].sum(axis=1) / lengths[draw].sum(axis=1)
            for draw in _draws(len(errors), resamples, seed)
        ]
    )
    return _paired_test(float(extra.sum() / lengths.sum()), differences)


def macro_interval(
    groups: Sequence[ArrayLike], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    r"""Percentile bootstrap 95 % interval of a mean of group means.

    With values :math:`r_{gu}` of utterance u in group (language) g of G, utterances
    are drawn within each group, whose number of utterances is part of the test set:

    .. math:: M^* = \frac{1}{G} \sum_g \frac{1}{n_g} \sum_{u \in draw_g} r_{gu} .

    Args:
        groups: Per group a vector of values per utterance.
        resamples: Number of resamples.
        seed: Seed of the draws.

    Returns:
        Lower and upper bound in the values' own scale.

    Raises:
        ValueError: No groups, or an empty one.
    """
    return _central(_macro_means(groups, resamples, seed), 0.95)


def paired_macro_bootstrap(
    groups: Sequence[ArrayLike],
    baseline_groups: Sequence[ArrayLike],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedTest:
    """Test whether a mean of group means differs from a baseline's.

    Both are evaluated on the same draws of utterances within groups; p-values as in
    :func:`paired_bootstrap`.

    Args:
        groups: Per group a vector of values per utterance.
        baseline_groups: The baseline's, in the same order.
        resamples: Number of resamples.
        seed: Seed of the draws.

    Raises:
        ValueError: Groups are missing, empty, or of different sizes.
    """
    extra = [
        np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
        for ours, theirs in zip(groups, baseline_groups, strict=True)
    ]
    differences = _macro_means(extra, resamples, seed)
    return _paired_test(float(np.mean([g.mean() for g in extra])), differences)


def mcnemar_exact(correct: ArrayLike, baseline_correct: ArrayLike) -> float:
    r"""Exact two-sided McNemar test of two classifiers on the same utterances.

    With b utterances that only the system and c that only the baseline has right,
    under equal accuracy b is binomial with b + c trials of probability 1/2:

    .. math:: p = \min\Big(1, 2 \sum_{i=0}^{\min(b, c)} \binom{b+c}{i} 2^{-(b+c)}\Big)

    Args:
        correct: Whether the system is right, ``[utterances]`` of bool.
        baseline_correct: Whether the baseline is, in the same order.

    Raises:
        ValueError: The two have different lengths.
    """
    from scipy.stats import binomtest

    system = np.asarray(correct, dtype=bool)
    baseline = np.asarray(baseline_correct, dtype=bool)
    if system.shape != baseline.shape:
        raise ValueError(f"{system.size} and {baseline.size} utterances do not pair")
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


def _macro_means(
    groups: Sequence[ArrayLike], resamples: int, seed: int
) -> NDArray[np.float64]:
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    if not arrays or min(map(len, arrays)) == 0:
        raise ValueError("no groups, or a group without utterances")
    total = np.zeros(resamples)
    for number, values in enumerate(arrays):
        # A stream of draws per group: the same for every system that is compared.
        draws = _draws(len(values), resamples, [seed, number])
        total += np.concatenate([values[draw].mean(axis=1) for draw in draws])
    return total / len(arrays)


def _paired_test(difference: float, differences: NDArray[np.float64]) -> PairedTest:
    resamples = len(differences)
    p_less = (1 + np.count_nonzero(differences >= 0)) / (resamples + 1)
    p_greater = (1 + np.count_nonzero(differences <= 0)) / (resamples + 1)
    return PairedTest(
        difference=difference,
        interval=_central(differences, 0.95),
        p_two_sided=min(1.0, 2 * min(p_less, p_greater)),
        p_less=p_less,
    )


def _checked(
    numerators: ArrayLike, denominators: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    errors = np.asarray(numerators, dtype=np.float64)
    lengths = np.asarray(denominators, dtype=np.float64)
    if errors.shape != lengths.shape or errors.ndim != 1:
        raise ValueError(
            f"expected two vectors of one length, found shapes {errors.shape} "
            f"and {lengths.shape}"
        )
    if errors.size == 0:
        raise ValueError("no utterances")
    if lengths.min() < 1:
        raise ValueError(f"denominator {lengths.min():g} is below 1")
    return errors, lengths


def _draws(
    utterances: int, resamples: int, seed: int | list[int]
) -> Iterator[NDArray[np.int64]]:
    """Yield blocks ``[resamples in block, utterances]`` of drawn indices."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_ELEMENTS // utterances)
    for start in range(0, resamples, block):
        yield rng.integers(utterances, size=(min(block, resamples - start), utterances))


def _central(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
