"""RESULTS.md in ESPnet's README format, with results.json and results.csv beside."""

import csv
import io
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from espnet2_lamer.evaluation.measure import Measure
from espnet2_lamer.evaluation.results import (
    IDENTIFICATION,
    RECOGNITION,
    Comparison,
    Figure,
    Results,
    collect_figures,
)
from espnet2_lamer.evaluation.scoring import Counts, LidScore, Score
from espnet2_lamer.fileio.atomic import write_json, write_text

_RATE_NAMES = {"char": "CER", "word": "WER"}
_HOW_TO_READ = (
    "Intervals are 95 %: error rates and other rates by bootstrap over utterances "
    '(10,000 resamples), identification accuracy by Wilson\'s score. "vs" gives the '
    "difference to that system and the two-sided p-value of a paired bootstrap over "
    "utterances, for identification of McNemar's exact test."
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


def write_results(directory: str | Path, results: Results) -> None:
    """Write RESULTS.md, results.json and results.csv into ``directory``.

    Raises:
        RecipeError: See :func:`espnet2_lamer.evaluation.results.collect_figures`.
    """
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
    lines += ["", _HOW_TO_READ, ""]
    lines += _recognition_summary(results, figures)
    lines += _identification_summary(results, figures)
    for table in results.tables:
        lines += [f"### {table.title}", ""]
        lines += [table.note, ""] if table.note else []
        lines += _figure_table(
            ["measured on", "system", "utterances", table.measure],
            [table.reference],
            [
                ([f.label, f.system, _count(f.measure.count)], f)
                for f in figures
                if f.table == table.title
            ],
        )
    lines += _parameters(results)
    for system, what in results.systems.items():
        lines += _system_section(results, system, what)
    return "\n".join(lines).rstrip("\n") + "\n"


def as_json(results: Results, figures: Sequence[Figure]) -> dict[str, Any]:
    """Return every figure with its comparisons, and what RESULTS.md says beside."""
    return {
        "environment": dict(results.environment),
        "systems": dict(results.systems),
        "baselines": list(results.baselines),
        "notes": list(results.notes),
        "figures": [
            {
                "table": f.table,
                "label": f.label,
                "unit": f.unit,
                "system": f.system,
                "value": f.measure.value,
                "interval": f.measure.interval,
                "utterances": f.measure.count,
                "tokens": f.tokens,
                "comparisons": [vars(c) for c in f.comparisons],
            }
            for f in figures
        ],
        "counts": {
            system: {
                label: score.total._asdict() | {"unit": score.unit}
                for label, score in row.items()
            }
            for system, row in results.recognition.items()
        },
        "confusion": {
            system: {label: score.confusion for label, score in row.items()}
            for system, row in results.identification.items()
        },
        "parameters": {m: dict(report) for m, report in results.parameters.items()},
    }


def as_csv(figures: Sequence[Figure]) -> str:
    """Return the figures as CSV, one line per figure and comparison."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["table", "label", "unit", "system", "value", "low", "high", "utterances"]
        + ["tokens", "reference", "difference", "difference_low", "difference_high"]
        + ["p", "test"]
    )
    for f in figures:
        low, high = f.measure.interval or ("", "")
        for c in f.comparisons or (Comparison("", 0.0),):
            compared = [c.reference, c.difference if c.reference else ""]
            compared += [*(c.interval or ("", "")), "" if c.p is None else c.p, c.test]
            writer.writerow(
                [f.table, f.label, f.unit, f.system, f.measure.value, low, high]
                + ["" if n is None else n for n in (f.measure.count, f.tokens)]
                + compared
            )
    return buffer.getvalue()


def _recognition_summary(results: Results, figures: Sequence[Figure]) -> list[str]:
    rows = [
        (
            [f.label, f.unit, f.system, _count(f.measure.count), _count(f.tokens)],
            f,
        )
        for f in figures
        if f.table == RECOGNITION
    ]
    if not rows:
        return []
    columns = ["test set", "unit", "upstream", "utterances", "tokens", "error rate (%)"]
    return [f"### {RECOGNITION}", ""] + _figure_table(columns, results.baselines, rows)


def _identification_summary(results: Results, figures: Sequence[Figure]) -> list[str]:
    rows = [
        (
            [f.label, f.system, _count(f.measure.count)]
            + [f"{results.identification[f.system][f.label].majority:.2f}"],
            f,
        )
        for f in figures
        if f.table == IDENTIFICATION
    ]
    if not rows:
        return []
    columns = ["test set", "upstream", "utterances", "largest class (%)"]
    columns += ["accuracy (%)"]
    return [f"### {IDENTIFICATION}", ""] + _figure_table(
        columns, results.baselines, rows
    )


def _figure_table(
    columns: Sequence[str],
    references: Iterable[str],
    rows: Sequence[tuple[list[str], Figure]],
) -> list[str]:
    # A reference that is compared with nothing would be a column of dashes.
    compared = {c.reference for _, figure in rows for c in figure.comparisons}
    references = [r for r in references if r in compared]
    body = []
    for cells, figure in rows:
        by_reference = {c.reference: c for c in figure.comparisons}
        body.append(
            cells
            + [f"{figure.measure.value:.2f}", _interval(figure.measure)]
            + [_comparison(by_reference.get(r)) for r in references]
        )
    header = [*columns, "95 % interval", *(f"vs {r}" for r in references)]
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
    scores = results.recognition.get(system, {})
    identified = results.identification.get(system, {})
    if not scores and not identified:
        return []
    lines = [f"## {system}", "", f"- {what}", ""]
    for unit in dict.fromkeys(score.unit for score in scores.values()):
        name = _RATE_NAMES.get(unit, "TER")
        lines += [f"### {name} (unit: {unit})", ""]
        header = "dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err".split("|")
        lines += _table(
            header,
            [_sclite_row(k, s) for k, s in scores.items() if s.unit == unit],
        )
    for label, score in identified.items():
        lines += [f"### LID: {label}", "", *_confusion(score)]
    return lines


def _sclite_row(label: str, score: Score) -> list[str]:
    total: Counts = score.total
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
