"""A figure of a results table: its interval and parts, and figures over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import sqrt
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espnet2_lamer.metrics.bootstrap import (
    RESAMPLES,
    Difference,
    central,
    macro_interval,
    paired_bootstrap,
    paired_macro_bootstrap,
    rate_interval,
    two_sided,
)

#: Per utterance id its (numerator, denominator).
Parts = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Measure:
    """A rate or another figure of one system.

    Attributes:
        value: The figure, per cent for rates; with several seeds their mean.
        interval: Its 95 % interval, or None when it was not estimated.
        parts: Where the figure is a rate, so that two systems can be compared
            utterance by utterance.
        seeds: Number of trainings whose mean this is.
        deviation: Standard deviation over them (n - 1), None for one training.
        note: What qualifies this one figure, e.g. the language of a maximum.
        groups: Of a mean over languages of means over utterances: per language and
            utterance id the utterance's value, as a fraction.
    """

    value: float
    interval: tuple[float, float] | None = None
    count: int | None = None
    parts: Parts = field(default_factory=dict, repr=False)
    seeds: int = 1
    deviation: float | None = None
    note: str = ""
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict, repr=False)

    @classmethod
    def of_rate(cls, parts: Parts, seed: int = 0) -> "Measure":
        """Make a rate in per cent, with its bootstrap interval, from its parts.

        Utterances with denominator 0 (no masked frame, no labelled frame) say
        nothing about the rate and are left out.

        Raises:
            ValueError: No utterance is left.
        """
        kept = {utt: parts[utt] for utt in sorted(parts) if parts[utt][1] > 0}
        if not kept:
            raise ValueError("no utterance has a denominator above 0")
        numerators, denominators = zip(*kept.values(), strict=True)
        low, high = rate_interval(numerators, denominators, seed=seed)
        return cls(
            value=100 * float(sum(numerators)) / float(sum(denominators)),
            interval=(100 * low, 100 * high),
            count=len(kept),
            parts=kept,
        )

    @classmethod
    def of_seeds(cls, measures: Sequence["Measure"]) -> "Measure":
        """Average the rates of several trainings on one test set.

        The value is the mean of the trainings' rates, its interval and comparisons
        are over utterances (each with its mean numerator), and the deviation is over
        the trainings.

        Raises:
            ValueError: No measure, or they are over different utterances.
        """
        first, *others = measures
        if not others:
            return first
        for other in others:
            first._require_same_utterances(other)
        averaged = cls.of_rate(
            {
                utt: (fmean(m.parts[utt][0] for m in measures), denominator)
                for utt, (_, denominator) in first.parts.items()
            }
        )
        deviation = stdev(m.value for m in measures)
        return replace(averaged, seeds=len(measures), deviation=deviation)

    @classmethod
    def of_groups(
        cls, groups: Mapping[str, Mapping[str, float]], seed: int = 0
    ) -> "Measure":
        """Make a mean over languages, in per cent, from :attr:`groups`.

        Its interval is over the utterances within languages.
        """
        values = [list(groups[name].values()) for name in sorted(groups)]
        low, high = macro_interval(values, seed=seed)
        return cls(
            value=100 * fmean(map(fmean, values)),
            interval=(100 * low, 100 * high),
            count=sum(map(len, values)),
            groups=groups,
        )

    def compare(self, baseline: "Measure") -> Difference:
        """Paired bootstrap against a baseline measured on the same utterances.

        Returns:
            The difference in per cent; without a test when either has neither parts
            nor groups.

        Raises:
            ValueError: The utterances or their denominators differ.
        """
        self._require_same_utterances(baseline)
        if self.parts and baseline.parts:
            utts = sorted(self.parts)
            test = paired_bootstrap(
                [self.parts[u][0] for u in utts],
                [baseline.parts[u][0] for u in utts],
                [self.parts[u][1] for u in utts],
            )
        elif self.groups and baseline.groups:
            order = [(name, list(self.groups[name])) for name in sorted(self.groups)]
            ours, theirs = (
                [[m.groups[name][utt] for utt in utts] for name, utts in order]
                for m in (self, baseline)
            )
            test = paired_macro_bootstrap(ours, theirs)
        else:
            return Difference(self.value - baseline.value)
        low, high = test.interval
        value = self.value - baseline.value
        return replace(test, value=value, interval=(100 * low, 100 * high))

    def _require_same_utterances(self, other: "Measure") -> None:
        ours, theirs = self._utterances(), other._utterances()
        if ours and theirs and ours != theirs:
            raise ValueError("the two measures are not over the same utterances")

    def _utterances(self) -> dict[str, Any]:
        if self.parts:
            return {utt: denominator for utt, (_, denominator) in self.parts.items()}
        return {name: set(group) for name, group in self.groups.items()}


#: One figure of each seed: a value, and parts where it is a rate. Several stand for
#: their mean (an average).
BySeed = Mapping[int, Sequence[Any]]


def means(figures: BySeed) -> dict[int, float]:
    """Return the value of each seed, in order."""
    return {seed: fmean(m.value for m in figures[seed]) for seed in sorted(figures)}


def summarise(figures: BySeed) -> Measure:
    """Summarise a figure over seeds: mean, deviation, interval.

    The interval is of :func:`resampled_means`, None for a figure without utterances
    measured with one seed.
    """
    values = list(means(figures).values())
    draws = resampled_means([figures[s] for s in sorted(figures)])
    return Measure(
        value=fmean(values),
        interval=None if draws is None else central(draws),
        seeds=len(values),
        deviation=stdev(values) if len(values) > 1 else None,
    )


def compare(
    figures: BySeed, baseline: BySeed, resamples: int = RESAMPLES
) -> Difference | None:
    """Compare two systems on the seeds that both have.

    Both are evaluated on the same draws of seeds and utterances; the p-value is
    :func:`~espnet2_lamer.metrics.bootstrap.two_sided`. None without a common seed.

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
    mine_draws = resampled_means(mine, resamples)
    their_draws = resampled_means(theirs, resamples)
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
    figures: Sequence[Sequence[Any]], resamples: int = RESAMPLES
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
        ValueError: The seeds differ in their utterances.
    """
    groups = len(figures[0])
    with_parts = bool(figures[0][0].parts)
    if len(figures) == 1 and not with_parts:
        return None
    weights = _counts(0, len(figures), resamples) / len(figures)  # [R, S]
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
            drawn = _counts(1 + g, len(utts), resamples)  # [R, U]
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
def _counts(stream: int, items: int, resamples: int) -> NDArray[np.float64]:
    """How often each of ``items`` is drawn in each resample ``[R, items]``."""
    rng = np.random.default_rng([0, stream])
    counts = rng.multinomial(items, np.full(items, 1 / items), size=resamples)
    return counts.astype(np.float64)
