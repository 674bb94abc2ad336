"""RESULTS.md in ESPnet's README format, results.json and results.csv."""

import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.runs import TRACKS, Task
from espnet2_lamer.evaluation.scoring import BPE, LidScore, Score
from espnet2_lamer.fileio.atomic import write_json, write_text
from espnet2_lamer.metrics.bootstrap import Difference, mcnemar_exact
from espnet2_lamer.metrics.measure import Measure
from espnet2_lamer.metrics.tables import (
    csv_text,
    markdown_table,
    number,
    p_value,
    render,
    span,
)

_RATE_NAMES = {"char": "CER", BPE: "CER", "word": "WER"}
#: More languages than these are in results.csv and results.json alone.
_MANY = 12
#: Caveats of the recipes' notes.
SYNTHETIC = (
    "Synthetic formant speech (espeak-ng): it shows that the pipeline learns and says "
    "nothing about human speech."
)
PARTLY_SYNTHETIC = (
    "Languages that no other corpus has are synthetic formant speech (espeak-ng), "
    "which says nothing about human speech; the kind of recording tells them apart."
)
CONFOUNDED = (
    "channel-confounded: no source covers two languages, so a model can tell the "
    "languages apart by their recordings. LID accuracy on this data is no evidence, "
    "and gains on it are weak evidence."
)


@dataclass
class MeasureTable:
    """A further table of figures, such as masked accuracy or forgetting.

    Attributes:
        measure: What the figures are, with their unit: "masked accuracy (%)".
        rows: ``rows[label][system]``; the label is a language, or what was measured.
        references: Systems the others are compared with, e.g. "head-only control".
        note: A sentence below the heading that says how to read the figures.
        units: What is counted, by label, where it is not the same in all rows.
    """

    title: str
    measure: str
    rows: Mapping[str, Mapping[str, Measure]]
    references: Sequence[str] = ()
    note: str = ""
    units: Mapping[str, str] = field(default_factory=dict)


#: ``scored[task][system][seed]``
Scored = Mapping[Task, Mapping[str, Mapping[int, Any]]]


@dataclass
class Results:
    """What a recipe's scoring fills in and :func:`write_results` lays out.

    Attributes:
        systems: What each upstream is, by name; the order is the tables' order.
        baselines: Systems that the others are tested against.
        recognition: A :class:`Score` per task, system and seed.
        heads: How the heads of a task's system were made, where that differs between
            systems, such as "layer 22".
        parameters: ``layers.parameter_report`` by model.
        notes: Caveats that a reader of the numbers must know.
        column: What a system is called in the tables of heads.
    """

    systems: Mapping[str, str]
    baselines: Sequence[str] = ()
    recognition: Scored = field(default_factory=dict)
    identification: Scored = field(default_factory=dict)
    heads: Mapping[tuple[Task, str], str] = field(default_factory=dict)
    tables: Sequence[MeasureTable] = ()
    parameters: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    column: str = "upstream"


@dataclass(frozen=True)
class TaskFigure:
    """One number of a table, with everything that qualifies it.

    Attributes:
        unit: What is counted; "" where the table says it.
        comparisons: Against each reference system that has the same figure.
        trainings: Value per seed, when several were averaged.
        task: What the head was trained for and tested on; without a track in further
            tables.
        score: Of the first training; None in further tables.
        head: See :attr:`Results.heads`.
    """

    table: str
    label: str
    unit: str
    system: str
    measure: Measure
    comparisons: tuple[Difference, ...] = ()
    trainings: Mapping[int, float] = field(default_factory=dict)
    task: Task = Task("", "", "")
    score: Score | LidScore | None = None
    head: str = ""

    @property
    def kind(self) -> str:
        """``error rate``, ``accuracy``, or "" in further tables."""
        return self.score.kind if self.score else ""

    @property
    def tokens(self) -> int | None:
        """Number of reference tokens of an error rate, None otherwise."""
        return self.score.total.ref_length if isinstance(self.score, Score) else None


def collect_figures(results: Results) -> list[TaskFigure]:
    """List all figures with their comparisons, table by table, label by label.

    Raises:
        RecipeError: A baseline or a scored system is not among the systems, or two
            systems were scored on different utterances.
    """
    scored = [*results.recognition.items(), *results.identification.items()]
    for name in (*results.baselines, *(system for _, row in scored for system in row)):
        if name not in results.systems:
            raise RecipeError(
                f"results: system {name!r} is not described; expected one of "
                f"{', '.join(results.systems)}"
            )
    figures = []
    for track in TRACKS:
        for task, row in scored:
            if task.track == track:
                figures += _of_task(results, task, row)
    for table in results.tables:
        for label, row in table.rows.items():
            unit = table.units.get(label, "")
            for system, measure in row.items():
                compared = _compared(row, system, table.references, label)
                figure = TaskFigure(table.title, label, unit, system, measure, compared)
                figures.append(figure)
    return figures


def _of_task(
    results: Results, task: Task, row: Mapping[str, Mapping[int, Score | LidScore]]
) -> Iterator[TaskFigure]:
    """Yield a task's figure of every system that was scored on it."""
    means = {
        system: Measure.of_seeds([score.measure for score in row[system].values()])
        for system in results.systems
        if system in row
    }
    for system, mean in means.items():
        scores = row[system]
        first = next(iter(scores.values()))
        exact = isinstance(first, LidScore)
        yield TaskFigure(
            TRACKS[task.track],
            task.label,
            task.unit,
            system,
            mean,
            _compared(means, system, results.baselines, task.label, exact),
            trainings={seed: score.measure.value for seed, score in scores.items()},
            task=task,
            score=first,
            head=results.heads.get((task, system), ""),
        )


def _compared(
    row: Mapping[str, Measure],
    system: str,
    references: Sequence[str],
    label: str,
    identified: bool = False,
) -> tuple[Difference, ...]:
    found = []
    mine = row[system]
    for reference in references:
        if reference == system or reference not in row:
            continue
        theirs = row[reference]
        try:
            test = replace(mine.compare(theirs), reference=reference)
        except ValueError as error:
            raise RecipeError(
                f"results: {label}: {system!r} and {reference!r} do not compare: "
                f"{error}; score both on the same test set"
            ) from error
        # McNemar's test counts right and wrong: not defined for means over seeds.
        if identified and mine.seeds == theirs.seeds == 1:
            utts = sorted(mine.parts)
            right = [[m.parts[u][0] for u in utts] for m in (mine, theirs)]
            test = replace(test, p=mcnemar_exact(*right), test="McNemar")
        found.append(test)
    return tuple(found)


def describe_environment(directory: str | Path = ".") -> dict[str, str]:
    """Return the "Environments" lines ESPnet's ``show_asr_result.sh`` writes.

    The commit is that of the git checkout that ``directory`` is in, if any.
    """
    environment = {
        "date": time.strftime("%a %b %e %H:%M:%S %Z %Y"),
        "python version": platform.python_version(),
        "espnet version": f"espnet {metadata.version('espnet')}",
        "pytorch version": f"pytorch {metadata.version('torch')}",
    }
    for name, form in (("Git hash", "%H"), ("Commit date", "%cd")):
        command = ["git", "log", "-1", f"--format={form}"]
        try:
            environment[name] = subprocess.run(
                command, cwd=directory, capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            break
    return environment


def write_results(
    directory: str | Path, results: Results, figures: Sequence[TaskFigure] | None = None
) -> None:
    """Write RESULTS.md, results.json and results.csv into ``directory``.

    ``figures`` are what ``collect_figures(results)`` returned, where that is at hand.
    """
    if figures is None:
        figures = collect_figures(results)
    directory = Path(directory)
    write_text(directory / "RESULTS.md", _markdown(results, figures))
    write_json(directory / "results.json", _as_json(results, figures))
    write_text(directory / "results.csv", _as_csv(figures))


def _as_json(results: Results, figures: Sequence[TaskFigure]) -> dict[str, Any]:
    """Return every figure with its comparisons, and what RESULTS.md says beside."""
    recognition = _trainings(results.recognition)
    identification = _trainings(results.identification)
    return {
        "environment": dict(results.environment),
        "systems": dict(results.systems),
        "baselines": list(results.baselines),
        "notes": list(results.notes),
        "figures": [
            _record(f)
            | {"interval": f.measure.interval, "trainings": dict(f.trainings)}
            | {"comparisons": [_compared_with(c, "interval") for c in f.comparisons]}
            for f in figures
        ],
        "counts": [
            {**key, **score.total._asdict(), "sclite": score.sclite_total._asdict()}
            for key, score in recognition
        ],
        "confusion": [
            {**key, "confusion": score.confusion} for key, score in identification
        ],
        "parameters": {m: dict(report) for m, report in results.parameters.items()},
    }


def _as_csv(figures: Sequence[TaskFigure]) -> str:
    """Return the figures as CSV, one line per figure and comparison."""
    columns = (
        "table label unit system value low high utterances tokens reference difference "
        "difference_low difference_high p test measure track train part head seeds "
        "deviation note"
    ).split()
    lines = []
    for f in figures:
        low, high = f.measure.interval or (None, None)
        line = _record(f) | {"low": low, "high": high}
        for c in f.comparisons:
            low, high = c.interval or (None, None)
            ends = {"difference_low": low, "difference_high": high}
            lines.append(line | _compared_with(c) | ends)
        lines += [] if f.comparisons else [line]
    return csv_text(lines, columns)


def _record(figure: TaskFigure) -> dict[str, Any]:
    """What a figure is, in the words of results.json and results.csv."""
    measure, task = figure.measure, figure.task
    return {
        "table": figure.table,
        "label": figure.label,
        "unit": figure.unit,
        "system": figure.system,
        "value": measure.value,
        "utterances": measure.count,
        "tokens": figure.tokens,
        "measure": figure.kind,
        "track": task.track,
        "train": task.train,
        "part": task.part,
        "head": figure.head,
        "seeds": measure.seeds,
        "deviation": measure.deviation,
        "note": measure.note,
    }


def _compared_with(difference: Difference, *more: str) -> dict[str, Any]:
    start = {"reference": difference.reference, "difference": difference.value}
    return start | {name: getattr(difference, name) for name in (*more, "p", "test")}


def _trainings(scored: Scored) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield every training's score with what it is of."""
    for task, row in scored.items():
        named = {n: getattr(task, n) for n in ("track", "label", "unit", "train")}
        for system, trainings in row.items():
            for seed, score in trainings.items():
                yield {**named, "system": system, "seed": seed}, score


def _markdown(results: Results, figures: Sequence[TaskFigure]) -> str:
    sections = []
    for track, title in TRACKS.items():
        mine = [f for f in figures if f.task.track == track]
        sections += [_track_section(results, title, mine)] if mine else []
    for table in results.tables:
        mine = [f for f in figures if not f.task.track and f.table == table.title]
        what = ("measured on", "system", table.measure)
        lines = _figure_table(mine, table.references, *what)
        sections.append({"title": table.title, "note": table.note, "tables": [lines]})
    reports = results.parameters.values()
    counts = [
        [key.replace("_", " "), *(_count(report.get(key)) for report in reports)]
        for key in dict.fromkeys(key for report in reports for key in report)
    ]
    return render(
        Path(__file__).with_name("results.md.jinja"),
        results=results,
        several_seeds=any(f.measure.seeds > 1 for f in figures),
        sections=sections,
        parameters=markdown_table(["count", *results.parameters], counts),
        systems=_systems(results),
    )


def _count(value: float | None) -> str:
    return f"{value:,}" if isinstance(value, int) else number(value)


def _track_section(
    results: Results, title: str, figures: Sequence[TaskFigure]
) -> dict[str, Any]:
    section: dict[str, Any] = {"title": title, "note": "", "tables": []}
    parts = {f.task.part for f in figures}
    if len(parts) > _MANY:
        figures = [f for f in figures if not f.task.part or f.task.group]
        section["note"] = f"{len(parts) - 1} parts of the test sets: results.csv."
    for kind in ("error rate", "accuracy"):
        if mine := [f for f in figures if f.kind == kind]:
            what = ("test set", results.column, f"{kind} (%)")
            section["tables"].append(_figure_table(mine, results.baselines, *what))
    return section


def _figure_table(
    figures: Sequence[TaskFigure],
    references: Sequence[str],
    label: str,
    system: str,
    value: str,
) -> str:
    """Lay figures out, with the columns that at least one of them has."""
    rows = [_cells(figure, label, system, value) for figure in figures]
    last = ["sd", *(f"vs {r}" for r in references), "trained on", "head"]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in names if name not in last]
    columns += [name for name in last if name in names]
    return markdown_table(columns, [[row.get(c) for c in columns] for row in rows])


def _cells(figure: TaskFigure, label: str, system: str, value: str) -> dict[str, Any]:
    """Return what a table says of a figure, by column; three have the table's names."""
    measure, score = figure.measure, figure.score
    cells = {label: figure.label}
    if figure.unit:
        cells["unit"] = figure.unit
    cells |= {system: figure.system, "utterances": measure.count}
    if isinstance(score, Score):
        cells["tokens"] = figure.tokens
    elif score:
        cells["largest class (%)"] = number(score.majority)
    note = f" ({measure.note})" if measure.note else ""
    cells |= {value: number(measure.value) + note}
    cells["95 % interval"] = span(measure.interval)
    if measure.deviation is not None:
        cells["sd"] = f"{number(measure.deviation)} ({measure.seeds} seeds)"
    for c in figure.comparisons:
        p = "" if c.p is None else f" (p {p_value(c.p, '= ')})"
        cells[f"vs {c.reference}"] = number(c.value, "+") + p
    if figure.task.train or figure.head:
        cells["trained on"] = figure.task.train or "-"
        cells["head"] = figure.head or "-"
    return cells


def _systems(results: Results) -> dict[str, Any]:
    """Return every system's scores in sclite's columns and its confusions."""
    systems: dict[str, Any] = {}
    for scored in (results.recognition, results.identification):
        for task, row in scored.items():
            same = [t for t in scored if (t.track, t.test) == (task.track, task.test)]
            if task.part and len({t.part for t in same}) > _MANY:
                continue
            for system, trainings in row.items():
                own = systems.setdefault(system, {"rates": {}, "confusions": []})
                for seed, score in trainings.items():
                    words = [task.label]
                    words += [] if task.track in ("asr", "lid") else [f"({task.track})"]
                    words += [f"trained on {task.train}"] if task.train else []
                    words += [f"seed {seed}"] if len(trainings) > 1 else []
                    name = " ".join(words)
                    if isinstance(score, Score):
                        unit = _RATE_NAMES.get(task.unit, "TER"), task.unit
                        own["rates"].setdefault(unit, []).append((name, score))
                    elif len(score.confusion) <= _MANY and not task.part:
                        confusion = f"{name}, {task.unit}", _confusion(score)
                        own["confusions"].append(confusion)
    return systems


def _confusion(score: LidScore) -> str:
    rows = score.confusion
    found = [*rows, *sorted({f for row in rows.values() for f in row} - {*rows})]
    body = [[true, *(row.get(f, 0) for f in found)] for true, row in rows.items()]
    return markdown_table(["true \\ found", *found], body)
