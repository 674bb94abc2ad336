"""What RESULTS.md, results.json and results.csv say of a run, and their writer."""

import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.changes import (
    Question,
    find_changes,
    five_lines,
    how_sure,
    text_picture,
)
from espnet2_lamer.evaluation.layout import by_system, sections
from espnet2_lamer.evaluation.runs import TRACKS, Task
from espnet2_lamer.evaluation.scoring import LidScore, Score
from espnet2_lamer.fileio.atomic import write_json, write_text
from espnet2_lamer.fileio.machine import describe_machine
from espnet2_lamer.metrics.bootstrap import Difference, mcnemar_exact
from espnet2_lamer.metrics.measure import Measure
from espnet2_lamer.metrics.tables import csv_text, render

_METHOD = (
    "Error rates are corpus-level: edit distance over reference tokens of the unit "
    "named, all utterances together. Intervals, in brackets, are 95 %: error rates and "
    "other rates by bootstrap over utterances (10,000 resamples), identification "
    "accuracy by Wilson's score. Differences have the interval and the two-sided "
    "p-value of a paired bootstrap over utterances; for identification p is of "
    "McNemar's exact test. The column sclite and the tables per system count along "
    "sclite's alignment (costs 4, 3, 3), as the official recipe, which may find more "
    "errors than the edit distance where errors are dense. results.csv has every "
    "figure in full, also what no table has room for."
)
_SEEDS = (
    " Where heads were trained with several seeds, a figure is their mean, its "
    'interval and test are over utterances, and "sd" is the standard deviation over '
    "seeds."
)
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
        gain: What a language gains where its figure is higher, such as "masked units";
            "" where labels are no languages, or where higher is not better.
        systems_first: Whether systems are rows and labels columns, where they fit.
    """

    title: str
    measure: str
    rows: Mapping[str, Mapping[str, Measure]]
    references: Sequence[str] = ()
    note: str = ""
    units: Mapping[str, str] = field(default_factory=dict)
    gain: str = ""
    systems_first: bool = False


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
        question: What the run is about; without it there are no first lines.
        caveats: What a reader must know before any number.
        conditions: Data, units and seeds, by name.
        notes: What else qualifies the numbers.
        sources: Folders that the report reads beside the figures.
        column: What a system is called in the tables of heads.
        names: Of languages, by code, as tables show them.
    """

    systems: Mapping[str, str]
    baselines: Sequence[str] = ()
    recognition: Scored = field(default_factory=dict)
    identification: Scored = field(default_factory=dict)
    heads: Mapping[tuple[Task, str], str] = field(default_factory=dict)
    tables: Sequence[MeasureTable] = ()
    parameters: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    question: Question | None = None
    caveats: Sequence[str] = ()
    conditions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    sources: Mapping[str, Any] = field(default_factory=dict)
    column: str = "upstream"
    names: Mapping[str, str] = field(default_factory=dict)


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
        gain: See :attr:`MeasureTable.gain`.
        sclite: An error rate along sclite's alignment, mean over the trainings.
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
    gain: str = ""
    sclite: float | None = None

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
                what = (table.title, label, unit, system, measure, compared)
                figures.append(TaskFigure(*what, gain=table.gain))
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
        sclite = None if exact else fmean(s.sclite_rate for s in scores.values())
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
            sclite=sclite,
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


def describe_environment(
    directory: str | Path = ".", device: str = "cpu"
) -> dict[str, str]:
    """Return the "Environments" lines ESPnet's ``show_asr_result.sh`` writes.

    And the machine. The commit is that of the git checkout that ``directory`` is in,
    if any.
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
    return environment | {"machine": describe_machine(device)}


def write_results(
    directory: str | Path, results: Results, figures: Sequence[TaskFigure] | None = None
) -> None:
    """Write RESULTS.md, results.json and results.csv into ``directory``.

    ``figures`` are what ``collect_figures(results)`` returned, where that is at hand.
    """
    if figures is None:
        figures = collect_figures(results)
    directory = Path(directory)
    data = results_data(results, figures)
    write_text(directory / "RESULTS.md", _markdown(data))
    write_json(directory / "results.json", data)
    write_text(directory / "results.csv", _as_csv(figures))


def results_data(results: Results, figures: Sequence[TaskFigure]) -> dict[str, Any]:
    """Return what results.json holds: every figure, and what qualifies it.

    RESULTS.md and the report are laid out from it.
    """
    question = results.question
    changes = find_changes(question, figures) if question else []
    recognition = _trainings(results.recognition)
    identification = _trainings(results.identification)
    return {
        "environment": dict(results.environment),
        "systems": dict(results.systems),
        "baselines": list(results.baselines),
        "column": results.column,
        "question": question.as_dict() if question else None,
        "changes": [change.as_dict() for change in changes],
        "caveats": list(results.caveats),
        "conditions": dict(results.conditions),
        "names": dict(results.names),
        "sources": dict(results.sources),
        "notes": list(results.notes),
        "tables": [
            {
                "title": table.title,
                "measure": table.measure,
                "references": list(table.references),
                "note": table.note,
                "gain": table.gain,
                "systems_first": table.systems_first,
            }
            for table in results.tables
        ],
        "figures": [
            _record(f)
            | {
                "group": f.task.group,
                "interval": f.measure.interval,
                "trainings": dict(f.trainings),
                "spread": question.spread_of(f) if question else None,
            }
            | {"comparisons": [_compared_with(c, "interval") for c in f.comparisons]}
            for f in figures
        ],
        "counts": [
            {
                **key,
                **score.total._asdict(),
                "utterances": score.utterances,
                "sentence_error_rate": score.sentence_error_rate,
                "sclite": score.sclite_total._asdict(),
            }
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
        "table label unit system value low high sclite utterances tokens reference "
        "difference difference_low difference_high p test measure track train part "
        "head seeds deviation note"
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
        "sclite": figure.sclite,
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
        names = ("track", "test", "part", "label", "unit", "train")
        named = {name: getattr(task, name) for name in names}
        for system, trainings in row.items():
            for seed, score in trainings.items():
                yield {**named, "system": system, "seed": seed}, score


def method(data: Mapping[str, Any]) -> str:
    """Say how rates, intervals and tests are computed."""
    text = _METHOD
    if any(figure["seeds"] > 1 for figure in data["figures"]):
        text += _SEEDS
    return text


def _markdown(data: Mapping[str, Any]) -> str:
    return render(
        Path(__file__).with_name("results.md.jinja"),
        data=data,
        lines=five_lines(data),
        sure=how_sure(data) if data["question"] else "",
        picture=text_picture(data["changes"]),
        sections=sections(data),
        systems=by_system(data),
        method=method(data),
    )
