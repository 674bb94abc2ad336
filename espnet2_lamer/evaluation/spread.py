r"""How far two runs of one system lie apart: what the intervals of one run leave out.

A run says how much better a system is than its baseline; another seed says otherwise.
With the deviation sd of these differences over n seeds, two runs disagree by less than

.. math:: t_{0.975, n - 1} \sqrt{2} \, sd

in 95 of 100 pairs. ``bin.experiment`` measures it: its CSV has the mean difference and
the effect size, which is that mean over sd.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from espnet2_lamer.errors import RecipeError

# Kinds of ``bin.experiment``'s measures, and what results call them; identification
# also says how a language was read off.
_KINDS = {
    "ASR error": "recognition",
    "LID accuracy": "identification by",
    "masked accuracy": "masked units",
    "phone probe": "phones",
}
_COLUMNS = {"measure", "system", "seeds", "difference", "effect"}


@dataclass(frozen=True)
class Spread:
    """How far runs lie apart in what they say of a system and its baseline, in points.

    Attributes:
        points: By what was measured, such as "recognition" or "phones", and language.
        seeds: Number of pairs of runs that it was measured with.
        source: The file.
    """

    points: Mapping[tuple[str, str], float] = field(default_factory=dict)
    seeds: int = 0
    source: str = ""

    def of(self, what: str, lang: str) -> float | None:
        """Return the points of a measure, None where it was not measured."""
        return self.points.get((what, lang))


def read_spread(path: str | Path, system: str = "lamer") -> Spread:
    """Read a CSV of ``bin.experiment``.

    Systems whose names begin with ``system`` count, such as the same in another
    arithmetic; of several the one with the largest deviation is taken. Measures with
    one seed, and those in which no seed differed, are left out.

    Raises:
        RecipeError: It is no such file, or has no measure with several seeds.
    """
    from scipy.stats import t

    path, points, seeds = Path(path), {}, set()
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if not _COLUMNS <= set(rows.fieldnames or ()):
            raise RecipeError(
                f"{path}: found columns {rows.fieldnames}, expected a CSV of "
                f"bin.experiment with {', '.join(sorted(_COLUMNS))}"
            )
        for row in rows:
            kind = next((k for k in _KINDS if row["measure"].startswith(f"{k} ")), "")
            count = len(row["seeds"].split())
            effect = float(row["effect"] or 0)
            if not kind or not effect or not row["system"].startswith(system):
                continue
            rest = row["measure"].removeprefix(f"{kind} ")
            lang, _, unit = rest.removesuffix(")").partition(" (")
            what = _KINDS[kind]
            key = (f"{what} {unit}" if what.endswith("by") else what), lang
            apart = (
                t.ppf(0.975, count - 1)
                * 2**0.5
                * abs(float(row["difference"]) / effect)
            )
            points[key] = max(points.get(key, 0.0), float(apart))
            seeds.add(count)
    if not points:
        raise RecipeError(
            f"{path}: no measure of a system {system!r} with several seeds; expected "
            "what bin.experiment writes of conf/experiments/spread.yaml"
        )
    return Spread(points, min(seeds), str(path))
