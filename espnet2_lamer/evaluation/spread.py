r"""How far two runs of one system lie apart: what the intervals of one run leave out.

A run says how much better a system is than its baseline; another seed says otherwise.
With the deviation sd of these differences over n seeds, two runs disagree by less than

.. math:: t_{0.975, n - 1} \sqrt{2} \, sd

in 95 of 100 pairs. ``bin.experiment`` measures it: its CSV has the mean difference and
the effect size, which is that mean over sd.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.metrics.tables import read_csv

# Kinds of ``bin.experiment``'s measures, and what results call them; identification
# also says how a language was read off.
_KINDS = {
    "ASR error": "recognition",
    "LID accuracy": "identification by",
    "masked accuracy": "masked units",
    "phone probe": "phones",
}
_BASE = "base"
_COLUMNS = {"measure", "system", "seeds", "difference", "effect"}


@dataclass(frozen=True)
class Spread:
    """How far runs lie apart in what they say of a system and its baseline, in points.

    Attributes:
        points: By what was measured, such as "recognition" or "phones", and language,
            "" for all utterances together.
        runs: Pairs of runs that it was measured with, by the file that has them.
    """

    points: Mapping[tuple[str, str], float] = field(default_factory=dict)
    runs: Mapping[str, int] = field(default_factory=dict)

    def of(self, what: str, lang: str) -> float | None:
        """Return the points of a measure, None where it was not measured."""
        return self.points.get((what, lang))


def read_spread(path: str | Path, system: str = "lamer") -> Spread:
    """Read the differences of ``system`` and the base in a CSV of ``bin.experiment``.

    Either may be the table's baseline. Systems whose names begin with ``system`` count,
    such as the same in another arithmetic; of several the one with the largest
    deviation is taken. Measures with one seed, and those in which no seed differed, are
    left out.

    Raises:
        RecipeError: It is no such file, or has no such difference over several seeds.
    """
    from scipy.stats import t

    path, points, seeds = Path(path), {}, set()
    _, columns, rows = read_csv(path)
    if not _COLUMNS <= set(columns):
        raise RecipeError(
            f"{path}: found columns {columns}, expected a CSV of bin.experiment with "
            f"{', '.join(sorted(_COLUMNS))}"
        )
    # What the others are compared with has no difference in any row.
    compared = {row["system"] for row in rows if row["difference"]}
    baseline = {row["system"] for row in rows} - compared
    ours = any(name.startswith(system) for name in baseline)
    wanted = _BASE if ours else system
    for row in rows:
        kind = next((k for k in _KINDS if row["measure"].startswith(f"{k} ")), "")
        effect = float(row["effect"] or 0)
        if not kind or not effect or not row["system"].startswith(wanted):
            continue
        # Claims may be about two others.
        if row.get("reference") and row["reference"] not in baseline:
            continue
        # "eng (char)"; of all languages together only the brackets.
        rest = row["measure"].removeprefix(kind)
        lang, _, unit = rest.removesuffix(")").partition(" (")
        lang = lang.strip()
        what = _KINDS[kind]
        key = (f"{what} {unit}" if what.endswith("by") else what), lang
        count = len(row["seeds"].split())
        deviation = abs(float(row["difference"]) / effect)
        apart = float(t.ppf(0.975, count - 1) * 2**0.5 * deviation)
        points[key] = max(points.get(key, 0.0), apart)
        seeds.add(count)
    if not points:
        raise RecipeError(
            f"{path}: no difference of {system!r} and {_BASE!r} over several seeds; "
            "expected what bin.experiment writes of a definition with both "
            "(docs/experiments.md)"
        )
    return Spread(points, {str(path): min(seeds)})


def read_spreads(paths: Iterable[str | Path], system: str = "lamer") -> Spread:
    """Read several CSVs; of a measure the first that has it counts.

    Raises:
        RecipeError: As :func:`read_spread`.
    """
    points, runs = {}, {}
    for found in [read_spread(path, system) for path in paths]:
        points = {**found.points, **points}
        runs |= found.runs
    return Spread(points, runs)
