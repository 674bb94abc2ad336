"""What an experiment found, from its cells or from its CSV, and whether claims hold."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from espnet2_lamer.experiments.definition import Claim, Definition
from espnet2_lamer.experiments.figures import (
    AVERAGE,
    About,
    Comparison,
    Figure,
    find_figures,
    read_figures,
    write_csv,
)
from espnet2_lamer.experiments.matrix import Matrix
from espnet2_lamer.experiments.measures import Name
from espnet2_lamer.metrics.bootstrap import Difference

NOT_RUN = "not run"
#: What is said of a cell that has none; the rest of what is said is of all cells.
NO_RESULT = "no result"
HOLDS, FAILS = "holds", "does not hold"
UNSHOWN, UNTOLD = "no difference shown", "cannot be told"
ONE_SEED = f"{UNTOLD} (one seed)"
#: Kinds that the transfer matrix has.
_TRANSFER = ("phone probe", "ASR error")


class Verdict(NamedTuple):
    """Whether a claim holds; ``NOT_RUN`` where there is nothing to compare."""

    claim: Claim
    verdict: str
    difference: Difference | None
    digits: int


class Tables:
    """All figures of a definition at one moment; ``about`` says what made them."""

    def __init__(
        self, definition: Definition, figures: Sequence[Figure], about: About
    ) -> None:
        self.definition = definition
        self.figures = figures
        self.about = about
        self._by_name = {(str(f.name), f.system): f for f in figures}
        self.verdicts = [self._verdict(claim) for claim in definition.claims]

    @classmethod
    def of_cells(cls, matrix: Matrix, about: Mapping[str, str]) -> "Tables":
        """Summarise the cells that are done."""
        definition = matrix.definition
        machines: dict[str, dict[str, None]] = {}
        seconds, records, missing = 0.0, [], []
        for cell in matrix.cells:
            record = matrix.store.record(cell.key)
            if record is None:
                status = matrix.status(cell)
                words = [f"{cell.label}: {status.state}", status.why]
                words += [f"log {status.log}"] if status.log else []
                missing.append((NO_RESULT, ": ".join(filter(None, words))))
                continue
            seconds += record["seconds"]
            if machine := record.get("machine"):
                commit = record.get("commit", "")[:12]
                machines.setdefault(machine, {})[commit] = None
            records.append((cell.system, cell.seed, record["measures"]))
        ran = (f"{name} ({', '.join(commits)})" for name, commits in machines.items())
        lines = {
            **about,
            "cells ran on": "; ".join(ran) or NOT_RUN,
            "seeds": " ".join(map(str, definition.seeds)),
            "cells done": f"{len(records)} of {len(matrix.cells)}",
            "cells took": f"{seconds / 60:.0f} min in all",
        }
        figures = find_figures(records, [*definition.systems], _compared(definition))
        return cls(definition, figures, [*lines.items(), *missing])

    @classmethod
    def of_csv(cls, definition: Definition, path: str | Path) -> "Tables":
        """Take figures, differences and what is said of them from a CSV.

        Raises:
            RecipeError: It is none of ``bin.experiment``.
        """
        return cls(definition, *read_figures(path))

    def as_csv(self) -> str:
        """Return one line per figure and difference, in full."""
        return write_csv(self.figures, self.about)

    def done(self, system: str) -> int:
        """Number of a system's seeds that have figures."""
        mine = (f.seeds for f in self.figures if f.system == system)
        return len({seed for seeds in mine for seed in seeds})

    def figure(self, measure: str, system: str) -> Figure | None:
        """Return one figure of one system; None if there is none."""
        return self._by_name.get((measure, system))

    def difference(self, measure: str, system: str, than: str) -> Difference | None:
        """Return a figure of ``system`` minus that of ``than``; None if not known."""
        mine, theirs = (self.figure(measure, name) for name in (system, than))
        if mine and than in mine.differences:
            return mine.differences[than]
        if theirs and system in theirs.differences:
            return theirs.differences[system].reversed()
        return None

    def _verdict(self, claim: Claim) -> Verdict:
        found = self.difference(claim.measure, claim.system, claim.than)
        if found is None:
            return Verdict(claim, NOT_RUN, None, 2)
        kind = self.figure(claim.measure, claim.system).kind
        verdict = judge(found, kind.better, claim.expect)
        return Verdict(claim, verdict, found, kind.digits)

    def transfer(self) -> dict[str, dict[str, Any]]:
        r"""Phone probe and ASR error of every language after every step of a sequence.

        Per measure the value after each step and, where the language is one that a
        step before the last learnt, the backward transfer
        :math:`R_{T,l} - R_{t(l),l}`: its value after the last step minus that after
        its own (Lopez-Paz and Ranzato, 2017), a :class:`Difference` of common seeds.
        """
        steps = self.definition.transfer
        matrix: dict[str, dict[str, Any]] = {}
        for f in self.figures:
            text = str(f.name)
            if text in matrix or f.name.kind not in _TRANSFER:
                continue
            if not steps or f.name.lang == AVERAGE:
                continue
            found = {step: self.figure(text, step) for step in steps}
            own = _own(steps, f.name.lang)
            matrix[text] = {
                "kind": f.kind,
                "steps": {step: g and g.measure.value for step, g in found.items()},
                "backward": self.difference(text, [*steps][-1], own) if own else None,
            }
        return matrix


def _own(steps: Mapping[str, str], lang: str) -> str:
    """Return the step before the last that learnt a language, or ""."""
    return next((step for step in [*steps][:-1] if steps[step] == lang), "")


def _compared(definition: Definition) -> list[Comparison]:
    """Name what is compared: all with the baseline, and what else the page needs."""
    base, steps = definition.baseline, definition.transfer
    others = [system for system in definition.systems if system != base]
    pairs = [Comparison(system, base) for system in others]
    asked = [
        Comparison(c.system, c.than, lambda name, c=c: str(name) == c.measure)
        for c in definition.claims
    ]

    def learnt(step: str) -> Callable[[Name], bool]:
        return lambda name: name.kind in _TRANSFER and step == _own(steps, name.lang)

    asked += [Comparison([*steps][-1], step, learnt(step)) for step in [*steps][:-1]]
    return pairs + [pair for pair in asked if base not in (pair.system, pair.than)]


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
        return ONE_SEED
    if not difference.told:
        return UNSHOWN if expect == "equal" else UNTOLD
    if expect == "equal":
        return FAILS
    found = "higher" if difference.interval[0] > 0 else "lower"
    if expect in ("better", "worse"):
        found = "better" if found == better else "worse"
    return HOLDS if found == expect else FAILS
