"""Figures of an experiment, also while cells are missing: Markdown, CSV and JSON."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.experiments.definition import Claim, Definition
from espnet2_lamer.experiments.matrix import Matrix, Status
from espnet2_lamer.experiments.measures import KINDS, CellMeasure, Kind
from espnet2_lamer.metrics.bootstrap import Difference
from espnet2_lamer.metrics.measure import Measure, compare, means, summarise
from espnet2_lamer.metrics.tables import csv_text, render

NOT_RUN = "not run"
#: In place of a language.
AVERAGE = "average"


@dataclass(frozen=True)
class Measured:
    """What one table is about: ``figures[system][seed]``, and one of them.

    Several figures of a seed stand for their mean; ``sample`` tells kind, language and
    layer of all.
    """

    name: str
    figures: dict[str, dict[int, list[CellMeasure]]]
    sample: CellMeasure

    @property
    def kind(self) -> Kind:
        """What holds for its kind."""
        return KINDS[self.sample.kind]

    @property
    def title(self) -> str:
        """Its name, with a star where it needs no head."""
        return f"{self.name} \\*" if self.kind.heads_free else self.name


@dataclass(frozen=True)
class Row:
    """One figure of one system; its measure is None where no cell was run.

    ``difference`` is to the baseline, None for itself or when either was not run;
    ``trainings`` are values by seed, ``null`` is what chance alone would give, mean
    over seeds.
    """

    of: Measured
    system: str
    measure: Measure | None
    difference: Difference | None
    trainings: Mapping[int, float]
    null: float | None


class Verdict(NamedTuple):
    """Whether a claim holds: ``holds``, ``does not hold``, ``cannot be told``, ..."""

    claim: Claim
    verdict: str
    difference: Difference | None


class Tables:
    """All figures of a matrix at one moment; ``header`` are lines of the head."""

    def __init__(self, matrix: Matrix, header: Mapping[str, str]) -> None:
        self.definition: Definition = matrix.definition
        self.cells = matrix.cells
        self.statuses: dict[tuple[str, int], Status] = {}
        machines: dict[str, None] = {}
        seconds = 0.0
        found: dict[str, Measured] = {}
        for cell in matrix.cells:
            self.statuses[cell.system, cell.seed] = matrix.status(cell)
            record = matrix.store.record(cell.key)
            if record is None:
                continue
            seconds += record["seconds"]
            if machine := record.get("machine"):
                machines[f"{machine} ({record.get('commit', '')[:12]})"] = None
            for name, group, sample in with_averages(record["measures"]):
                measured = found.setdefault(name, Measured(name, {}, sample))
                measured.figures.setdefault(cell.system, {})[cell.seed] = group
        order = [*KINDS]
        self.measured = dict(
            sorted(found.items(), key=lambda i: (order.index(i[1].sample.kind), i[0]))
        )
        self.rows = [row for one in self.measured.values() for row in self._rows(one)]
        self.verdicts = [self._verdict(claim) for claim in self.definition.claims]
        done = sum(map(self.done, self.definition.systems))
        self.header = {
            **header,
            "cells ran on": "; ".join(machines) or NOT_RUN,
            "seeds": " ".join(map(str, self.definition.seeds)),
            "cells done": f"{done} of {len(self.cells)}",
            "cells took": f"{seconds / 60:.0f} min in all",
        }

    def _rows(self, measured: Measured) -> Iterable[Row]:
        baseline = self.definition.baseline
        for system in self.definition.systems:
            figures = measured.figures.get(system, {})
            difference = None
            if system != baseline:
                difference = self._difference(measured, system, baseline)
            nulls = [m.null for group in figures.values() for m in group]
            yield Row(
                measured,
                system,
                summarise(figures) if figures else None,
                difference,
                means(figures),
                None if not nulls or None in nulls else fmean(nulls),
            )

    def _verdict(self, claim: Claim) -> Verdict:
        measured = self.measured.get(claim.measure)
        found = measured and self._difference(measured, claim.system, claim.than)
        if not found:
            return Verdict(claim, NOT_RUN, None)
        return Verdict(claim, judge(found, measured.kind.better, claim.expect), found)

    def _difference(
        self, measured: Measured, system: str, than: str
    ) -> Difference | None:
        mine, theirs = measured.figures.get(system), measured.figures.get(than)
        try:
            return compare(mine, theirs) if mine and theirs else None
        except ValueError as error:
            raise RecipeError(f"{measured.name}, {system}: {error}") from error

    def transfer(self) -> dict[str, Any]:
        r"""Phone probe and ASR error of every language after every step of a sequence.

        Per measure the value after each step and, where the language is one that a
        step before the last learnt, the backward transfer
        :math:`R_{T,l} - R_{t(l),l}`: its value after the last step minus that after
        its own (Lopez-Paz and Ranzato, 2017), a :class:`Difference` of common seeds.
        """
        steps = self.definition.transfer
        if not steps:
            return {}
        *before, last = steps
        matrix: dict[str, Any] = {}
        for name, measured in self.measured.items():
            lang, kind = measured.sample.lang, measured.sample.kind
            if kind not in ("phone probe", "ASR error") or lang == AVERAGE:
                continue
            own = [step for step in before if steps[step] == lang]
            rows = [self.row(name, step) for step in steps]
            backward = self._difference(measured, last, own[0]) if own else None
            matrix[name] = {
                "lang": lang,
                "steps": {r.system: r.measure and r.measure.value for r in rows},
                "backward_transfer": backward,
            }
        return matrix

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "name": self.definition.name,
            "title": self.definition.title,
            "source": self.definition.source,
            "header": self.header,
            "baseline": self.definition.baseline,
            "rows": [_flat(row) for row in self.rows],
            "verdicts": [
                vars(claim) | {"verdict": verdict, "difference": _plain(difference)}
                for claim, verdict, difference in self.verdicts
            ],
            "transfer": {
                name: entry | {"backward_transfer": _plain(entry["backward_transfer"])}
                for name, entry in self.transfer().items()
            },
            "cells": [
                {"system": cell.system, "seed": cell.seed, "key": cell.key}
                | vars(self.statuses[cell.system, cell.seed])
                for cell in self.cells
            ],
        }

    def done(self, system: str) -> int:
        """Number of a system's cells that are done."""
        states = [s.state for (name, _), s in self.statuses.items() if name == system]
        return states.count("done")

    def row(self, measure: str, system: str) -> Row:
        """Return one figure of one system."""
        return next(r for r in self.rows if (r.of.name, r.system) == (measure, system))

    def as_csv(self) -> str:
        """Return one line per figure and system."""
        rows = [_flat(row) for row in self.rows]
        return csv_text(rows, [*rows[0]] if rows else ["measure", "system"])


def judge(difference: Difference, better: str, expect: str) -> str:
    """Say whether a claim of a direction, or of equality, is borne out.

    A direction holds when the 95 % interval of the difference lies on its side of 0,
    does not hold when it lies on the other, and cannot be told otherwise. That two
    are equal cannot be shown by a test: it does not hold when the interval leaves 0
    out.

    ``better`` says which values are: ``higher``, ``lower`` or ``neither``; a claim may
    expect ``better`` or ``worse`` only where one is.
    """
    if difference.interval is None or len(difference.seeds) < 2:
        return "cannot be told (one seed)"
    if not difference.told:
        return "no difference shown" if expect == "equal" else "cannot be told"
    if expect == "equal":
        return "does not hold"
    found = "higher" if difference.interval[0] > 0 else "lower"
    if expect in ("better", "worse"):
        found = "better" if found == better else "worse"
    return "holds" if found == expect else "does not hold"


def with_averages(
    measures: Mapping[str, CellMeasure],
) -> Iterable[tuple[str, list[CellMeasure], CellMeasure]]:
    """Yield names and figures: each alone, and averages over languages.

    An average is of the languages' figures, each with the same weight, as the "avg"
    of the paper's tables; of each unit where languages have several (ways to identify).
    """
    by_kind: dict[str, list[CellMeasure]] = {}
    for name, measure in measures.items():
        yield name, [measure], measure
        if measure.lang and measure.parts:
            by_kind.setdefault(measure.kind, []).append(measure)
    for same in by_kind.values():
        several = len({(m.lang, m.test) for m in same}) < len(same)
        for unit in dict.fromkeys(m.unit if several else "" for m in same):
            own = [m for m in same if not several or m.unit == unit]
            if len(own) > 1:
                sample = replace(own[0], lang=AVERAGE, test="", unit=unit)
                yield sample.name, own, sample


def _plain(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    names = ("interval", "p", "effect", "p_seeds")
    plain = {name: getattr(difference, name) for name in names}
    return {"seeds": difference.seeds, "mean": difference.value, **plain}


def _flat(row: Row) -> dict[str, Any]:
    s, d = row.measure, row.difference
    low, high = (s and s.interval) or (None, None)
    d_low, d_high = (d and d.interval) or (None, None)
    return {
        "measure": row.of.name,
        "better": row.of.kind.better,
        "heads_free": row.of.kind.heads_free,
        "system": row.system,
        "state": "run" if s else NOT_RUN,
        "seeds": " ".join(map(str, row.trainings)) if s else None,
        "mean": s and s.value,
        "deviation": s and s.deviation,
        "low": low,
        "high": high,
        "difference": d and d.value,
        "difference_low": d_low,
        "difference_high": d_high,
        "p": d and d.p,
        "effect": d and d.effect,
        "p_seeds": d and d.p_seeds,
        "by_chance": row.null,
    }


def markdown(tables: Tables, picture: str | None = None) -> str:
    """Lay an experiment out as a page.

    ``picture`` is the file beside the page that
    :func:`~espnet2_lamer.experiments.plots.plot_differences` drew, if any.
    """
    definition = tables.definition
    return render(
        Path(__file__).with_name("page.md.jinja"),
        tables=tables,
        definition=definition,
        picture=picture,
        uneven=len({tables.done(name) for name in definition.systems} - {0}) > 1,
    )
