"""RESULTS.md in ESPnet's README format."""

import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from espnet2_lamer.evaluation.records import as_csv, as_json
from espnet2_lamer.evaluation.results import (
    TRACKS,
    Comparison,
    Figure,
    MeasureTable,
    Results,
    Task,
    collect_figures,
)
from espnet2_lamer.evaluation.scoring import LidScore, Score
from espnet2_lamer.fileio.atomic import write_json, write_text
from espnet2_lamer.metrics.measure import Measure

_RATE_NAMES = {"char": "CER", "bpe": "CER", "word": "WER"}
#: More languages than these are in results.csv and results.json alone.
_MANY = 12
_HOW_TO_READ = (
    "Error rates are corpus-level: edit distance over reference tokens of the unit "
    "named, all utterances together. Intervals are 95 %: error rates and other rates "
    "by bootstrap over utterances (10,000 resamples), identification accuracy by "
    'Wilson\'s score. "vs" gives the difference to that system and the two-sided '
    "p-value of a paired bootstrap over utterances, for identification of McNemar's "
    "exact test. The tables per system at the end have sclite's columns, counted along "
    "sclite's alignment (costs 4, 3, 3), which may find more errors than the edit "
    "distance where errors are dense."
)
_SEEDS = (
    "Where heads were trained with several seeds, a figure is their mean, its interval "
    'and test are over utterances, and "sd" is the standard deviation over seeds.'
)


def describe_environment(directory: str | Path = ".") -> dict[str, str]:
    """Return the "Environments" lines ESPnet's ``show_asr_result.sh`` writes.

    Args:
        directory: A directory of the git checkout whose commit is named; the git
            lines are left out when it is in none.
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
    directory: str | Path, results: Results, figures: Sequence[Figure] | None = None
) -> None:
    """Write RESULTS.md, results.json and results.csv into ``directory``.

    Args:
        directory: Where they go.
        results: What they say.
        figures: What ``collect_figures(results)`` returned, where that is at hand.

    Raises:
        RecipeError: See :func:`espnet2_lamer.evaluation.results.collect_figures`.
    """
    if figures is None:
        figures = collect_figures(results)
    directory = Path(directory)
    write_text(directory / "RESULTS.md", markdown(results, figures))
    write_json(directory / "results.json", as_json(results, figures))
    write_text(directory / "results.csv", as_csv(figures))


def markdown(results: Results, figures: Sequence[Figure]) -> str:
    """Lay the results out as RESULTS.md."""
    lines = ["# RESULTS", "", "## Environments", ""]
    lines += [f"- {name}: `{value}`" for name, value in results.environment.items()]
    lines += ["", "## Summary", ""]
    lines += [f"- {name}: {what}" for name, what in results.systems.items()]
    lines += [f"- Note: {note}" for note in results.notes]
    lines += ["", _HOW_TO_READ]
    lines += [_SEEDS] if any(f.measure.seeds > 1 for f in figures) else []
    lines.append("")
    for track, title in TRACKS.items():
        lines += _track_section(results, track, title, figures)
    for table in results.tables:
        lines += _measure_section(table, figures)
    lines += _parameters(results)
    for system, what in results.systems.items():
        lines += _system_section(results, system, what)
    return "\n".join(lines).rstrip("\n") + "\n"


def _track_section(
    results: Results, track: str, title: str, figures: Sequence[Figure]
) -> list[str]:
    mine = [f for f in figures if f.task is not None and f.task.track == track]
    if not mine:
        return []
    lines = [f"### {title}", ""]
    parts = {f.task.part for f in mine if f.task is not None}
    if len(parts) > _MANY:
        mine = [f for f in mine if not _is_language(f)]
        lines += [f"{len(parts) - 1} parts of the test sets: results.csv.", ""]
    columns = ["test set", "unit", results.column, "utterances"]
    for kind, more, value in (
        ("error rate", "tokens", "error rate (%)"),
        ("accuracy", "largest class (%)", "accuracy (%)"),
    ):
        rows = []
        for f in mine:
            if f.kind != kind:
                continue
            cells = [f.label, f.unit, f.system, _count(f.measure.count)]
            rows.append(([*cells, _size(results, f)], f))
        if rows:
            header = [*columns, more, value]
            heads = any(f.head or (f.task and f.task.train) for f in mine)
            lines += _figure_table(header, results.baselines, rows, heads)
    return lines


def _is_language(figure: Figure) -> bool:
    # Groups of languages have names of several words.
    return bool(figure.task and figure.task.part and " " not in figure.task.part)


def _size(results: Results, figure: Figure) -> str:
    """Reference tokens, or how well the most frequent language alone would do."""
    if figure.kind == "error rate" or figure.task is None:
        return _count(figure.tokens)
    trainings = results.identification[figure.task][figure.system]
    return f"{next(iter(trainings.values())).majority:.2f}"


def _measure_section(table: MeasureTable, figures: Sequence[Figure]) -> list[str]:
    lines = [f"### {table.title}", ""]
    lines += [table.note, ""] if table.note else []
    columns = ["measured on", *(["unit"] if table.units else []), "system"]
    rows = []
    for f in figures:
        if f.task is None and f.table == table.title:
            unit = [f.unit] if table.units else []
            rows.append(([f.label, *unit, f.system, _count(f.measure.count)], f))
    columns += ["utterances", table.measure]
    return lines + _figure_table(columns, table.references, rows)


def _figure_table(
    columns: Sequence[str],
    references: Iterable[str],
    rows: Sequence[tuple[list[str], Figure]],
    heads: bool = False,
) -> list[str]:
    # A reference that is compared with nothing would be a column of dashes.
    compared = {c.reference for _, figure in rows for c in figure.comparisons}
    references = [r for r in references if r in compared]
    seeds = any(figure.measure.seeds > 1 for _, figure in rows)
    body = []
    for cells, figure in rows:
        by_reference = {c.reference: c for c in figure.comparisons}
        body.append(
            cells
            + [_value(figure.measure), _interval(figure.measure)]
            + ([_deviation(figure.measure)] if seeds else [])
            + [_comparison(by_reference.get(r)) for r in references]
        )
        if heads and figure.task is not None:
            body[-1] += [figure.task.train or "-", figure.head or "-"]
    header = [*columns, "95 % interval", *(["sd"] if seeds else [])]
    header += [f"vs {r}" for r in references]
    header += ["trained on", "head"] if heads else []
    return _table(header, body)


def _parameters(results: Results) -> list[str]:
    if not results.parameters:
        return []
    keys = list(dict.fromkeys(k for r in results.parameters.values() for k in r))
    models = list(results.parameters)
    body = []
    for key in keys:
        values = [results.parameters[m].get(key) for m in models]
        body.append([key.replace("_", " "), *map(_number, values)])
    return ["### Parameters", "", *_table(["count", *models], body)]


def _system_section(results: Results, system: str, what: str) -> list[str]:
    scores = _of_system(results.recognition, system)
    identified = _of_system(results.identification, system)
    if not scores and not identified:
        return []
    lines = [f"## {system}", "", f"- {what}", ""]
    for unit in dict.fromkeys(task.unit for task, _, _ in scores):
        name = _RATE_NAMES.get(unit.split()[0], "TER")
        lines += [f"### {name} (unit: {unit})", ""]
        lines += _table(
            "dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err".split("|"),
            [
                _sclite_row(_dataset(task, seed), score)
                for task, seed, score in scores
                if task.unit == unit
            ],
        )
    for task, seed, score in identified:
        if len(score.confusion) <= _MANY and not task.part:
            lines += [f"### LID: {_dataset(task, seed)}, {task.unit}", ""]
            lines += _confusion(score)
    return lines


def _of_system(scored, system: str) -> list[tuple[Task, int | None, Any]]:
    """Every task's scores of a system; the seed is None where there is one only."""
    found = []
    for task, row in scored.items():
        trainings = row.get(system, {})
        if _is_many(scored, task) and task.part:
            continue
        for seed, score in trainings.items():
            found.append((task, seed if len(trainings) > 1 else None, score))
    return found


def _is_many(scored, task: Task) -> bool:
    siblings = {t.part for t in scored if (t.track, t.test) == (task.track, task.test)}
    return len(siblings) > _MANY


def _dataset(task: Task, seed: int | None) -> str:
    words = [task.label]
    words += [] if task.track in ("asr", "lid") else [f"({task.track})"]
    words += [f"trained on {task.train}"] if task.train else []
    words += [] if seed is None else [f"seed {seed}"]
    return " ".join(words)


def _sclite_row(label: str, score: Score) -> list[str]:
    total = score.sclite_total
    parts = (total.cor, total.sub, total.dele, total.ins, total.errors)
    shares = [f"{100 * part / total.ref_length:.1f}" for part in parts]
    return [
        label,
        str(score.utterances),
        str(total.ref_length),
        *shares,
        f"{score.sentence_error_rate:.1f}",
    ]


def _confusion(score: LidScore) -> list[str]:
    found = list(score.confusion)
    found += sorted({f for row in score.confusion.values() for f in row} - {*found})
    body = [
        [true, *(str(row.get(name, 0)) for name in found)]
        for true, row in score.confusion.items()
    ]
    return _table(["true \\ found", *found], body)


def _table(header: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    rows = [header, ["---"] * len(header), *body]
    return ["|" + "|".join(cells) + "|" for cells in rows] + [""]


def _value(measure: Measure) -> str:
    note = f" ({measure.note})" if measure.note else ""
    return f"{measure.value:.2f}{note}"


def _deviation(measure: Measure) -> str:
    if measure.deviation is None:
        return "-"
    return f"{measure.deviation:.2f} ({measure.seeds} seeds)"


def _interval(measure: Measure) -> str:
    if measure.interval is None:
        return "-"
    low, high = measure.interval
    return f"{low:.2f} to {high:.2f}"


def _comparison(comparison: Comparison | None) -> str:
    if comparison is None:
        return "-"
    text = f"{comparison.difference:+.2f}"
    if comparison.p is None:
        return text
    p = "< 0.001" if comparison.p < 0.001 else f"= {comparison.p:.3f}"
    return f"{text} (p {p})"


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
