"""A figure of a results table: a value with its interval and its parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev

from espnet2_lamer.metrics.bootstrap import (
    PairedTest,
    macro_interval,
    paired_bootstrap,
    paired_macro_bootstrap,
    rate_interval,
)


@dataclass(frozen=True)
class Measure:
    """A rate or another figure of one system.

    Attributes:
        value: The figure, per cent for rates; with several seeds their mean.
        interval: Its 95 % interval, or None when it was not estimated.
        count: Number of utterances it was measured on, or None.
        parts: Per utterance id (numerator, denominator) when the figure is a rate,
            so that two systems can be compared utterance by utterance.
        seeds: Number of trainings whose mean this is.
        deviation: Standard deviation over them (n - 1), None for one training.
        note: What qualifies this one figure, e.g. the language of a maximum.
    """

    value: float
    interval: tuple[float, float] | None = None
    count: int | None = None
    parts: Mapping[str, tuple[float, float]] = field(default_factory=dict, repr=False)
    seeds: int = 1
    deviation: float | None = None
    note: str = ""

    @classmethod
    def of_rate(
        cls, parts: Mapping[str, tuple[float, float]], seed: int = 0
    ) -> "Measure":
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
            _require_same_parts(first, other)
        averaged = cls.of_rate(
            {
                utt: (fmean(m.parts[utt][0] for m in measures), denominator)
                for utt, (_, denominator) in first.parts.items()
            },
            seed,
        )
        deviation = stdev(m.value for m in measures)
        return replace(averaged, seeds=len(measures), deviation=deviation)

    def compare(self, baseline: "Measure", seed: int = 0) -> PairedTest | None:
        """Paired bootstrap against a baseline measured on the same utterances.

        Returns:
            The test, differences as fractions; None when either has no parts.

        Raises:
            ValueError: The utterances or their denominators differ.
        """
        if not self.parts or not baseline.parts:
            return None
        _require_same_parts(self, baseline)
        utts = sorted(self.parts)
        return paired_bootstrap(
            [self.parts[u][0] for u in utts],
            [baseline.parts[u][0] for u in utts],
            [self.parts[u][1] for u in utts],
            seed=seed,
        )


@dataclass(frozen=True)
class MacroMeasure(Measure):
    """A mean over languages of means over utterances.

    Attributes:
        groups: Per language and utterance id the utterance's value, as a fraction.
    """

    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict, repr=False)

    @classmethod
    def of_groups(
        cls, groups: Mapping[str, Mapping[str, float]], seed: int = 0
    ) -> "MacroMeasure":
        """Make the mean in per cent with its interval (utterances within languages).

        Raises:
            ValueError: No language, or one without utterances.
        """
        values = [list(groups[name].values()) for name in sorted(groups)]
        low, high = macro_interval(values, seed=seed)
        return cls(
            value=100 * fmean(map(fmean, values)),
            interval=(100 * low, 100 * high),
            count=sum(map(len, values)),
            groups=groups,
        )

    def compare(self, baseline: Measure, seed: int = 0) -> PairedTest | None:
        """Paired bootstrap within languages.

        Raises:
            ValueError: The languages or their utterances differ.
        """
        if not isinstance(baseline, MacroMeasure):
            return None
        ours, theirs = self.groups, baseline.groups
        if {n: set(g) for n, g in ours.items()} != {
            n: set(g) for n, g in theirs.items()
        }:
            raise ValueError("the two measures are not over the same utterances")
        order = [(name, list(ours[name])) for name in sorted(ours)]
        return paired_macro_bootstrap(
            [[ours[name][utt] for utt in utts] for name, utts in order],
            [[theirs[name][utt] for utt in utts] for name, utts in order],
            seed=seed,
        )


def _require_same_parts(one: Measure, other: Measure) -> None:
    if {u: p[1] for u, p in one.parts.items()} != {
        u: p[1] for u, p in other.parts.items()
    }:
        raise ValueError("the two measures are not over the same utterances")
