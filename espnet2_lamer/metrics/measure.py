"""A figure of a results table: a value with its interval and its parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from espnet2_lamer.metrics.bootstrap import (
    Difference,
    macro_interval,
    paired_bootstrap,
    paired_macro_bootstrap,
    rate_interval,
)

#: Per utterance id its (numerator, denominator).
Parts = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Measure:
    """A rate or another figure of one system.

    Attributes:
        value: The figure, per cent for rates; with several seeds their mean.
        interval: Its 95 % interval, or None when it was not estimated.
        count: Number of utterances it was measured on, or None.
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
    def of_seeds(cls, measures: Sequence["Measure"], seed: int = 0) -> "Measure":
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
            },
            seed,
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

    def compare(self, baseline: "Measure", seed: int = 0) -> Difference:
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
                seed=seed,
            )
        elif self.groups and baseline.groups:
            order = [(name, list(self.groups[name])) for name in sorted(self.groups)]
            ours, theirs = (
                [[m.groups[name][utt] for utt in utts] for name, utts in order]
                for m in (self, baseline)
            )
            test = paired_macro_bootstrap(ours, theirs, seed=seed)
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
