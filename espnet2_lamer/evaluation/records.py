"""results.json and results.csv: every figure with all that qualifies it."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from espnet2_lamer.evaluation.results import Comparison, Figure, Results, Task


def as_json(results: Results, figures: Sequence[Figure]) -> dict[str, Any]:
    """Return every figure with its comparisons, and what RESULTS.md says beside."""
    return {
        "environment": dict(results.environment),
        "systems": dict(results.systems),
        "baselines": list(results.baselines),
        "notes": list(results.notes),
        "figures": [
            _row(f)
            | {
                "interval": f.measure.interval,
                "trainings": dict(f.trainings),
                "comparisons": [vars(c) for c in f.comparisons],
            }
            for f in figures
        ],
        "counts": [
            _scored(task, system, seed)
            | score.total._asdict()
            | {"sclite": score.sclite_total._asdict()}
            for task, row in results.recognition.items()
            for system, trainings in row.items()
            for seed, score in trainings.items()
        ],
        "confusion": [
            _scored(task, system, seed) | {"confusion": score.confusion}
            for task, row in results.identification.items()
            for system, trainings in row.items()
            for seed, score in trainings.items()
        ],
        "parameters": {m: dict(report) for m, report in results.parameters.items()},
    }


def as_csv(figures: Sequence[Figure]) -> str:
    """Return the figures as CSV, one line per figure and comparison."""
    buffer = io.StringIO()
    columns = ["table", "label", "unit", "system", "value", "low", "high"]
    columns += ["utterances", "tokens", "reference", "difference", "difference_low"]
    columns += ["difference_high", "p", "test", "measure", "track", "train", "part"]
    columns += ["head", "seeds", "deviation", "note"]
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for f in figures:
        low, high = f.measure.interval or (None, None)
        for c in f.comparisons or (None,):
            line = _row(f) | {"low": low, "high": high} | _compared(c)
            writer.writerow({k: "" if v is None else v for k, v in line.items()})
    return buffer.getvalue()


def _row(figure: Figure) -> dict[str, Any]:
    """What a figure is, in the words of results.json and results.csv."""
    task, measure = figure.task, figure.measure
    return {
        "table": figure.table,
        "label": figure.label,
        "unit": figure.unit,
        "system": figure.system,
        "value": measure.value,
        "utterances": measure.count,
        "tokens": figure.tokens,
        "measure": figure.kind,
        "track": task.track if task else "",
        "train": task.train if task else "",
        "part": task.part if task else "",
        "head": figure.head,
        "seeds": measure.seeds,
        "deviation": measure.deviation,
        "note": measure.note,
    }


def _compared(comparison: Comparison | None) -> dict[str, Any]:
    if comparison is None:
        return {}
    low, high = comparison.interval or (None, None)
    return {
        "reference": comparison.reference,
        "difference": comparison.difference,
        "difference_low": low,
        "difference_high": high,
        "p": comparison.p,
        "test": comparison.test,
    }


def _scored(task: Task, system: str, seed: int) -> dict[str, Any]:
    return {
        "track": task.track,
        "label": task.label,
        "unit": task.unit,
        "train": task.train,
        "system": system,
        "seed": seed,
    }
