"""Figures of an experiment: a measure of a system over its seeds; their CSV."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.experiments.measures import CellMeasure, Kind, Name
from espnet2_lamer.metrics.bootstrap import Difference
from espnet2_lamer.metrics.measure import Measure, compare, means, summarise
from espnet2_lamer.metrics.tables import csv_text, read_csv

#: In place of a language.
AVERAGE = "average"
#: What is said of all figures, such as the command: names and values.
About = Sequence[tuple[str, str]]
_COLUMNS = (
    "measure better heads_free system seeds mean deviation low high by_chance "
    "reference difference difference_low difference_high p effect p_seeds"
).split()
#: Cells' figures by seed; several of a seed stand for their mean.
BySeed = dict[int, list[CellMeasure]]


@dataclass(frozen=True)
class Figure:
    """One measure of one system.

    Attributes:
        name: What was measured.
        seeds: Of the trainings whose mean it is.
        differences: To other systems, by their names.
        by_chance: What chance alone would give, mean over seeds, or None.
    """

    name: Name
    system: str
    seeds: tuple[int, ...]
    measure: Measure
    differences: Mapping[str, Difference] = field(default_factory=dict)
    by_chance: float | None = None

    @property
    def kind(self) -> Kind:
        """What holds for its kind."""
        return self.name.about


class Comparison(NamedTuple):
    """One system minus another, in the measures of which ``of`` says so."""

    system: str
    than: str
    of: Callable[[Name], bool] = lambda name: True


def find_figures(
    records: Iterable[tuple[str, int, Mapping[str, CellMeasure]]],
    systems: Sequence[str],
    compared: Sequence[Comparison],
) -> list[Figure]:
    """Summarise the figures of cells over seeds, and compare systems.

    Args:
        records: System, seed and figures by name, of every cell that has some.
        systems: Their order.
        compared: What is compared with what.

    Raises:
        RecipeError: Two systems were measured on different utterances.
    """
    found: dict[str, dict[str, BySeed]] = {}
    for system, seed, measures in records:
        for name, group in with_averages(measures):
            found.setdefault(name, {}).setdefault(system, {})[seed] = group
    figures = []
    for name in sorted(map(Name.parse, found), key=lambda name: name.order):
        of = found[str(name)]
        for system in filter(of.__contains__, systems):
            mine = of[system]
            differences = {
                than: _compare(name, system, mine, of[than])
                for one, than, asked in compared
                if one == system and than in of and asked(name)
            }
            nulls = [m.null for group in mine.values() for m in group]
            figures.append(
                Figure(
                    name,
                    system,
                    tuple(means(mine)),
                    summarise(mine),
                    {than: d for than, d in differences.items() if d},
                    None if None in nulls else fmean(nulls),
                )
            )
    return figures


def _compare(
    name: Name, system: str, mine: BySeed, theirs: BySeed
) -> Difference | None:
    try:
        return compare(mine, theirs)
    except ValueError as error:
        raise RecipeError(f"{name}, {system}: {error}") from error


def with_averages(
    measures: Mapping[str, CellMeasure],
) -> Iterable[tuple[str, list[CellMeasure]]]:
    """Yield names and figures: each alone, and averages over languages.

    An average is of the languages' figures, each with the same weight, as the "avg"
    of the paper's tables; of each unit where languages have several (ways to identify).
    """
    by_kind: dict[str, list[CellMeasure]] = {}
    for name, measure in measures.items():
        yield name, [measure]
        if measure.lang and measure.parts:
            by_kind.setdefault(measure.kind, []).append(measure)
    for same in by_kind.values():
        several = len({(m.lang, m.test) for m in same}) < len(same)
        for unit in dict.fromkeys(m.unit if several else "" for m in same):
            own = [m for m in same if not several or m.unit == unit]
            if len(own) > 1:
                yield replace(own[0], lang=AVERAGE, test="", unit=unit).name, own


def write_csv(figures: Iterable[Figure], about: About) -> str:
    """Return one line per figure and difference, below what is said of all."""
    lines = []
    for figure in figures:
        low, high = figure.measure.interval or (None, None)
        line = {
            "measure": str(figure.name),
            "better": figure.kind.better,
            "heads_free": figure.kind.heads_free,
            "system": figure.system,
            "seeds": " ".join(map(str, figure.seeds)),
            "mean": figure.measure.value,
            "deviation": figure.measure.deviation,
            "low": low,
            "high": high,
            "by_chance": figure.by_chance,
        }
        for other, d in figure.differences.items():
            lines.append(line | _difference(other, d))
        lines += [] if figure.differences else [line]
    return csv_text(lines, _COLUMNS, about)


def _difference(other: str, d: Difference) -> dict[str, Any]:
    low, high = d.interval or (None, None)
    ends = {"difference_low": low, "difference_high": high}
    tests = {"p": d.p, "effect": d.effect, "p_seeds": d.p_seeds}
    return {"reference": other, "difference": d.value, **ends, **tests}


def read_figures(path: str | Path) -> tuple[list[Figure], About]:
    """Return what :func:`write_csv` wrote.

    Raises:
        RecipeError: It is another file.
    """
    about, columns, rows = read_csv(path)
    missing = [column for column in _COLUMNS if column not in columns]
    if missing:
        raise RecipeError(
            f"{path}: column {missing[0]!r} not found; expected the results.csv that "
            "bin.experiment writes"
        )
    seeds = {
        (row["measure"], row["system"]): tuple(map(int, row["seeds"].split()))
        for row in rows
    }
    figures: dict[tuple[str, str], Figure] = {}
    for row in rows:
        key = row["measure"], row["system"]
        if key not in figures:
            mean, deviation, by_chance = _numbers(row, "mean deviation by_chance")
            figures[key] = Figure(
                Name.parse(key[0]),
                key[1],
                seeds[key],
                Measure(
                    mean, _ends(row, ""), seeds=len(seeds[key]), deviation=deviation
                ),
                {},
                by_chance,
            )
        if other := row["reference"]:
            value, p, effect, p_seeds = _numbers(row, "difference p effect p_seeds")
            common = set(seeds[key]) & set(seeds[key[0], other])
            figures[key].differences[other] = Difference(
                value,
                _ends(row, "difference_"),
                p,
                seeds=tuple(sorted(common)),
                effect=effect,
                p_seeds=p_seeds,
            )
    return [*figures.values()], about


def _ends(row: Mapping[str, str], of: str) -> tuple[float, float] | None:
    low, high = _numbers(row, f"{of}low {of}high")
    return None if low is None else (low, high)


def _numbers(row: Mapping[str, str], columns: str) -> list[float | None]:
    return [_number(row[column]) for column in columns.split()]


def _number(text: str) -> float | None:
    """Read a cell; of a p that a page has as "< 0.001" no more is known."""
    if text.startswith("<"):
        return math.nextafter(float(text[1:]), 0)
    return float(text) if text else None
