"""A figure of a results table: a value with its interval and its parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from espnet2_lamer.evaluation.bootstrap import (
    PairedTest,
    paired_bootstrap,
    rate_interval,
)


@dataclass(frozen=True)
class Measure:
    """A rate or another figure of one system.

    Attributes:
        value: The figure, per cent for rates.
        interval: Its 95 % interval, or None when it was not estimated.
        count: Number of utterances it was measured on, or None.
        parts: Per utterance id (numerator, denominator) when the figure is a rate,
            so that two systems can be compared utterance by utterance.
    """

    value: float
    interval: tuple[float, float] | None = None
    count: int | None = None
    parts: Mapping[str, tuple[float, float]] = field(default_factory=dict, repr=False)

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

    def compare(self, baseline: "Measure", seed: int = 0) -> PairedTest | None:
        """Paired bootstrap against a baseline measured on the same utterances.

        Returns:
            The test, differences as fractions; None when either has no parts.

        Raises:
            ValueError: The utterances or their denominators differ.
        """
        if not self.parts or not baseline.parts:
            return None
        if {u: p[1] for u, p in self.parts.items()} != {
            u: p[1] for u, p in baseline.parts.items()
        }:
            raise ValueError("the two measures are not over the same utterances")
        utts = sorted(self.parts)
        return paired_bootstrap(
            [self.parts[u][0] for u in utts],
            [baseline.parts[u][0] for u in utts],
            [self.parts[u][1] for u in utts],
            seed=seed,
        )
