"""Norms of finished trainings: their course, how it goes on, what the guard knows."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from espnet2_lamer.analysis.plots import Line, plot_lines
from espnet2_lamer.convert.espnet_experiment import CONFIG
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_json, write_text
from espnet2_lamer.fileio.foreign import check_weights, parse_yaml
from espnet2_lamer.layers.experts import LoRAExperts
from espnet2_lamer.layers.norms import frozen_norms, norms_of
from espnet2_lamer.metrics.growth import Growth, add_up_rates, fit_growth
from espnet2_lamer.metrics.tables import csv_text
from espnet2_lamer.train.checkpoint import CheckpointStore
from espnet2_lamer.train.norms import summary
from espnet2_lamer.train.update import polynomial_rates
from espnet2_lamer.upstream import load_model

#: Of ``norms.csv``, which is also what the guard of a training reads.
COLUMNS = ("run", "update", "rate_sum", "share", "mean_share", "router")
#: What grows, and its name in a plot.
NORMS = {"share": "largest share", "router": "largest router row"}


@dataclass(frozen=True)
class Course:
    """Norms along a training: a row per measurement, with what :data:`COLUMNS` name.

    A model file alone has one row, without update and rate sum.
    """

    name: str
    rows: list[dict[str, Any]]

    def fit(self, norm: str) -> Growth | None:
        """Fit the growth of a norm; see :func:`~.metrics.growth.fit_growth`."""
        rows = [r for r in self.rows if r["rate_sum"] and r.get(norm) is not None]
        return fit_growth([r["rate_sum"] for r in rows], [r[norm] for r in rows])


def read_courses(sources: Sequence[Path]) -> list[Course]:
    """Read trainings (see :func:`read_course`), each under a name of its own."""
    names = [
        source.parent.name if source.stem == "norms" else source.stem
        for source in sources
    ]
    return [
        Course(name if names.count(name) == 1 else str(source), read_course(source))
        for name, source in zip(names, sources, strict=True)
    ]


def read_course(source: Path) -> list[dict[str, Any]]:
    """Read the rows of a training or model.

    Args:
        source: ``norms.jsonl`` or another file of such lines; the folder of a training,
            whose step checkpoints are read where it has no ``norms.jsonl``; or what
            :func:`~espnet2_lamer.load_model` takes.

    Raises:
        RecipeError: There are no experts, or a line is not one of norms.
    """
    own = source / "norms.jsonl"
    if source.suffix == ".jsonl" or own.is_file():
        lines = _read_lines(source if source.suffix == ".jsonl" else own)
    elif (source / CONFIG).is_file() and CheckpointStore(
        source / "checkpoints"
    ).paths():
        lines = _read_checkpoints(source)
    else:
        model = load_model(source)
        lines = [norms_of(model, frozen_norms(model))]
    rows = [
        {
            "update": line.get("update"),
            "rate_sum": line.get("rate_sum"),
            **summary(line),
        }
        for line in lines
    ]
    if not rows or not all(line["experts"] for line in lines):
        raise RecipeError(
            f"{source}: found no norms of experts, expected norms.jsonl of a training, "
            "its folder, or a model with experts"
        )
    return rows


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
        lines = [json.loads(text) for text in texts]
        updates = [line["update"] for line in lines]
        rates = [line["rate" if "rate" in line else "lr"] for line in lines]
        experts = all(isinstance(line["experts"], dict) for line in lines)
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"{path}: found a line that is not one of norms.jsonl ({error!r}); name "
            "the file or the folder of a training"
        ) from error
    if experts and any("rate_sum" not in line for line in lines):
        _add_sums(lines, updates, rates)
    return lines


def _read_checkpoints(folder: Path) -> list[dict[str, Any]]:
    model = load_model(folder)
    frozen = frozen_norms(model)
    scales = {m.scale for m in model.modules() if isinstance(m, LoRAExperts)} or {1.0}
    lines, rates = [], []
    for path in reversed(CheckpointStore(folder / "checkpoints").paths()):
        state = check_weights(path, "cpu")
        line = {"update": state["updates"]}
        if "rate_sum" in state:
            line["rate_sum"] = state["rate_sum"]
        rates.append(state["optimizers"][0]["param_groups"][0]["lr"])
        lines.append(line | norms_of(state["model"], frozen, max(scales)))
    if any("rate_sum" not in line for line in lines):
        _add_sums(lines, [line["update"] for line in lines], rates)
    return lines


def _add_sums(
    lines: Sequence[dict[str, Any]], updates: Sequence[int], rates: Sequence[float]
) -> None:
    """Of files that have rates only."""
    for line, total in zip(lines, add_up_rates(updates, rates), strict=True):
        line["rate_sum"] = total


def schedule_end(config: Path) -> tuple[int, float]:
    """Updates of a pretraining config, and the sum of their learning rates.

    Raises:
        RecipeError: Its schedule is not ``polynomialdecaylr``.
    """
    conf = parse_yaml(config.read_text(encoding="utf-8"), config)
    found = conf.get("scheduler")
    if found != "polynomialdecaylr":
        raise RecipeError(
            f"{config}: scheduler: found {found!r}, expected polynomialdecaylr; the "
            "rates of others are not added up"
        )
    rates = polynomial_rates(**conf["scheduler_conf"])
    return len(rates), conf["optim_conf"]["lr"] * sum(rates)


def norms_report(
    courses: Sequence[Course], schedules: Mapping[str, tuple[int, float]]
) -> dict[str, Any]:
    """What ``norms.json`` holds: per norm and training its end, its fit, predictions.

    ``across`` is the norm at the end of every other training over what the fit
    predicts there: how far a fit holds at another rate and length.
    """
    report: dict[str, Any] = {}
    for course in courses:
        end = course.rows[-1]
        report[course.name] = found = {"end": end, "norms": {}}
        for norm in NORMS:
            growth = course.fit(norm)
            if growth is None:
                continue
            found["norms"][norm] = {
                **asdict(growth),
                "across": {
                    other.name: other.rows[-1][norm]
                    / growth.at(other.rows[-1]["rate_sum"])
                    for other in courses
                    if other is not course and other.rows[-1]["rate_sum"]
                },
                "predicted": {
                    name: {
                        "updates": updates,
                        "rate_sum": total,
                        "value": growth.at(total),
                        "interval": list(growth.interval(total)),
                    }
                    for name, (updates, total) in schedules.items()
                },
            }
    return report


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """Say what a report found, one line per training and prediction."""
    said = []
    for name, found in report.items():
        end = found["end"]
        place = f"after update {end['update']}, rate sum {end['rate_sum']:.3g}"
        shares = f"largest share {end['share']:.3g}, mean {end['mean_share']:.3g}"
        routers = f", largest router row {end['router']:.3g}" if "router" in end else ""
        where = place if end["rate_sum"] else "model"
        said.append(f"{name}, {where}: {shares}{routers}")
        for norm, fit in found["norms"].items():
            said.append(
                f"{name}, {NORMS[norm]}: {fit['factor']:.3g} * R^{fit['power']:.2f}; "
                f"the second half was within a factor of {_times(fit['miss'])} of "
                "what the first predicts"
            )
            for config, guess in fit["predicted"].items():
                low, high = guess["interval"]
                said.append(
                    f"{name} -> {config}, {NORMS[norm]} after {guess['updates']} "
                    f"updates, rate sum {guess['rate_sum']:.3g}: {guess['value']:.3g} "
                    f"({low:.3g} to {high:.3g})"
                )
    return said


def write_norms(
    courses: Sequence[Course], report: Mapping[str, Any], folder: Path
) -> None:
    """Write ``norms.csv``, ``norms.json`` and ``norms.png`` into a folder."""
    rows = [
        {"run": course.name, **{k: _short(v) for k, v in row.items()}}
        for course in courses
        for row in course.rows
    ]
    write_text(folder / "norms.csv", csv_text(rows, COLUMNS))
    write_json(folder / "norms.json", report)
    drawn: dict[str, dict[str, list[Line]]] = {}
    for norm, title in NORMS.items():
        lines = []
        for number, course in enumerate(courses):
            known = [r for r in course.rows if r["rate_sum"] and norm in r]
            x, y = ([r[key] for r in known] for key in ("rate_sum", norm))
            lines.append(Line(x, y, course.name, colour=f"C{number % 10}"))
        drawn[title] = {"": lines}
    plot_lines(drawn, folder / "norms.png", "sum of learning rates")


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _times(logarithm: float) -> str:
    return f"{math.exp(logarithm):.2f}"
