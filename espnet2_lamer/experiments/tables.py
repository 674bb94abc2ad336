"""Figures of an experiment, also while cells are missing; CSV and JSON."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.experiments.definition import Claim, Definition
from espnet2_lamer.experiments.matrix import Matrix, Status
from espnet2_lamer.experiments.measures import CellMeasure, with_averages
from espnet2_lamer.experiments.statistics import (
    Difference,
    Summary,
    compare,
    summarise,
)

NOT_RUN = "not run"


@dataclass(frozen=True)
class Row:
    """One figure of one system.

    Attributes:
        measure: Name of the figure.
        kind: See :class:`~espnet2_lamer.experiments.measures.CellMeasure`.
        better: Likewise.
        heads_free: Likewise.
        system: Row.
        summary: None: not run.
        difference: To the baseline; None for itself or when either was not run.
        null: What chance alone would give, mean over seeds, or None.
    """

    measure: str
    kind: str
    better: str
    heads_free: bool
    system: str
    summary: Summary | None
    difference: Difference | None
    null: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds: ``holds``, ``does not hold``, ``cannot be told``, ..."""

    claim: Claim
    verdict: str
    difference: Difference | None


class Tables:
    """All figures of an experiment at one moment.

    Args:
        matrix: The cells.
        header: Lines of the head: command, commit, machine, time.
    """

    def __init__(self, matrix: Matrix, header: Mapping[str, str]) -> None:
        self.matrix = matrix
        self.definition: Definition = matrix.definition
        self.header = dict(header)
        self.statuses: dict[tuple[str, int], Status] = {}
        # figures[measure][system][seed]
        self.figures: dict[str, dict[str, dict[int, list[CellMeasure]]]] = {}
        self.machines: dict[str, None] = {}
        self.seconds = 0.0
        for cell in matrix.cells:
            self.statuses[cell.system, cell.seed] = matrix.status(cell)
            record = matrix.store.record(cell.key)
            if record is None:
                continue
            self.seconds += record.seconds
            if record.machine:
                self.machines[f"{record.machine} ({record.commit[:12]})"] = None
            for name, group in with_averages(record.measures).items():
                by_system = self.figures.setdefault(name, {})
                by_system.setdefault(cell.system, {})[cell.seed] = group
        self.names = sorted(self.figures, key=_order)
        self.rows = [row for name in self.names for row in self._rows(name)]
        self.verdicts = [self._verdict(claim) for claim in self.definition.claims]

    def _rows(self, name: str) -> Iterable[Row]:
        systems = self.figures[name]
        sample = next(iter(next(iter(systems.values())).values()))
        baseline = systems.get(self.definition.baseline)
        for system in self.definition.systems:
            figures = systems.get(system)
            difference = None
            if figures and baseline and system != self.definition.baseline:
                difference = _compare(name, system, figures, baseline)
            nulls = [m.null for f in (figures or {}).values() for m in f]
            yield Row(
                measure=name,
                kind=sample[0].kind,
                better=sample[0].better,
                heads_free=sample[0].heads_free,
                system=system,
                summary=summarise(figures) if figures else None,
                difference=difference,
                null=None if not nulls or None in nulls else fmean(nulls),
            )

    def _verdict(self, claim: Claim) -> Verdict:
        systems = self.figures.get(claim.measure, {})
        mine, theirs = systems.get(claim.system), systems.get(claim.than)
        if not mine or not theirs:
            return Verdict(claim, NOT_RUN, None)
        found = _compare(claim.measure, claim.system, mine, theirs)
        if found is None:
            return Verdict(claim, NOT_RUN, None)
        better = next(iter(mine.values()))[0].better
        return Verdict(claim, judge(found, better, claim.expect), found)

    def transfer(self) -> dict[str, Any]:
        r"""Phone probe and ASR error of every language after every step of a sequence.

        Per measure the value after each step and, where the language is one that a
        step before the last learnt, the backward transfer
        :math:`R_{T,l} - R_{t(l),l}`: its value after the last step minus that after
        its own (Lopez-Paz and Ranzato, 2017), a :class:`Difference` of common seeds.
        """
        steps = self.definition.transfer
        matrix: dict[str, Any] = {}
        for row in self.rows:
            name = row.measure.removeprefix(row.kind).split()
            if row.system not in steps or row.kind not in ("phone probe", "ASR error"):
                continue
            if name[0] == "average":
                continue
            entry = matrix.setdefault(row.measure, {"lang": name[0], "steps": {}})
            entry["steps"][row.system] = row.summary and row.summary.mean
        *before, last = steps or [""]
        for measure, entry in matrix.items():
            own = [step for step in before if steps[step] == entry["lang"]]
            figures = self.figures[measure]
            found = None
            if own and {own[0], last} <= set(figures):
                found = _compare(measure, last, figures[last], figures[own[0]])
            entry["backward_transfer"] = found
        return matrix

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            **self.head(),
            "rows": [_flat(row) for row in self.rows],
            "verdicts": [
                {
                    **vars(v.claim),
                    "verdict": v.verdict,
                    "difference": v.difference and vars(v.difference),
                }
                for v in self.verdicts
            ],
            "transfer": {
                measure: {
                    **entry,
                    "backward_transfer": entry["backward_transfer"]
                    and vars(entry["backward_transfer"]),
                }
                for measure, entry in self.transfer().items()
            },
            "cells": [
                {
                    "system": cell.system,
                    "seed": cell.seed,
                    "key": cell.key,
                    **vars(self.statuses[cell.system, cell.seed]),
                }
                for cell in self.matrix.cells
            ],
        }

    def head(self) -> dict[str, Any]:
        """Return what stands above all figures."""
        done = sum(map(self.done, self.definition.systems))
        return {
            "name": self.definition.name,
            "title": self.definition.title,
            "source": self.definition.source,
            "header": {
                **self.header,
                "cells ran on": "; ".join(self.machines) or NOT_RUN,
                "seeds": " ".join(map(str, self.definition.seeds)),
                "cells done": f"{done} of {len(self.matrix.cells)}",
                "cells took": f"{self.seconds / 60:.0f} min in all",
            },
            "baseline": self.definition.baseline,
        }

    def done(self, system: str) -> int:
        """Number of a system's cells that are done."""
        return sum(
            status.state == "done"
            for (name, _), status in self.statuses.items()
            if name == system
        )

    def row(self, measure: str, system: str) -> Row:
        """Return one figure of one system."""
        return next(r for r in self.rows if (r.measure, r.system) == (measure, system))

    def as_csv(self) -> str:
        """Return one line per figure and system."""
        buffer = io.StringIO()
        rows = [_flat(row) for row in self.rows]
        columns = list(rows[0]) if rows else ["measure", "system"]
        writer = csv.DictWriter(buffer, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: "" if v is None else v for k, v in row.items()})
        return buffer.getvalue()


def judge(difference: Difference, better: str, expect: str) -> str:
    """Say whether a claim of a direction, or of equality, is borne out.

    A direction holds when the 95 % interval of the difference lies on its side of 0,
    does not hold when it lies on the other, and cannot be told otherwise. That two
    are equal cannot be shown by a test: it does not hold when the interval leaves 0
    out.

    Args:
        difference: System minus the one it is compared with.
        better: ``higher`` or ``lower`` values are better, or ``neither``, for which
            claims expect ``higher``, ``lower`` or ``equal``.
        expect: ``better``, ``worse``, ``higher``, ``lower`` or ``equal``.
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


def _compare(name: str, system: str, mine, theirs) -> Difference | None:
    try:
        return compare(mine, theirs)
    except ValueError as error:
        raise RecipeError(f"{name}, {system}: {error}") from error


def _order(name: str) -> tuple[int, str]:
    """Sort figures by what they tell, old language and averages not torn apart."""
    kinds = ("phone probe", "CKA", "masked accuracy", "ASR error", "LID", "trainable")
    for place, kind in enumerate(kinds):
        if name.startswith(kind):
            return place, name
    return len(kinds), name


def _flat(row: Row) -> dict[str, Any]:
    s, d = row.summary, row.difference
    low, high = (s.interval if s and s.interval else None) or (None, None)
    d_low, d_high = (d.interval if d and d.interval else None) or (None, None)
    return {
        "measure": row.measure,
        "better": row.better,
        "heads_free": row.heads_free,
        "system": row.system,
        "state": "run" if s else NOT_RUN,
        "seeds": " ".join(map(str, s.seeds)) if s else None,
        "mean": s and s.mean,
        "deviation": s and s.deviation,
        "low": low,
        "high": high,
        "difference": d and d.mean,
        "difference_low": d_low,
        "difference_high": d_high,
        "p": d and d.p,
        "effect": d and d.effect,
        "p_seeds": d and d.p_seeds,
        "by_chance": row.null,
    }
