"""The report of a run: first lines, picture, tables, curves, routing, clips."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.changes import (
    GAINED,
    KEPT,
    LOST,
    UNTOLD,
    Line,
    five_lines,
    how_sure,
    in_points,
    scale,
    short,
)
from espnet2_lamer.evaluation.layout import by_system, sections
from espnet2_lamer.evaluation.results import method
from espnet2_lamer.fileio.atomic import write_text
from espnet2_lamer.report.clips import listening_examples
from espnet2_lamer.report.page import data_uri, render_html

RESULTS = "results.json"
CLIPS = 5
_PARTS = (
    ("changes", "Gains and losses"),
    ("tables", "Tables"),
    ("training", "Training"),
    ("routing", "Routing"),
    ("listening", "Listening"),
    ("conditions", "Conditions"),
)
_STYLES = {GAINED: "gained", KEPT: "kept", LOST: "lost", UNTOLD: "untold"}
_CHANGE = re.compile(r"\b([a-z]{3} [+-][\d.]+)")
# Of the analysis folder: file, what it shows, what to read from it.
_CURVES = (
    (
        "training_curves.png",
        "Loss of masked prediction by epoch, in training and validation",
        "Masked-prediction loss in nats per masked frame; dotted: training.",
    ),
    (
        "masked_accuracy_curves.png",
        "Masked accuracy by epoch, one panel per language",
        "Masked accuracy per language; the head-only control is what a base that "
        "changes nothing reaches.",
    ),
    (
        "forgetting_curves.png",
        "CKA to the base and phone accuracy over the updates, one panel per language",
        "What was forgotten on the way: linear CKA to the base, and a linear phone "
        "probe where phones are known.",
    ),
    (
        "norms.png",
        "Norms of experts and routers over the sum of learning rates",
        "How far the experts have grown: the largest update of a weight as a share of "
        "the frozen weight, and the largest row of a router.",
    ),
)
_ROUTING = (
    (
        "routing_heatmap.png",
        "Mean gate of every expert in every layer, one panel per language",
        "Mean weight of every expert, per language and layer, on held-out speech.",
    ),
    (
        "routing_by_layer.png",
        "Mean gate of every expert for each language, one panel per layer",
        "The same by layer (Lamer-SSL, Fig. 2): rows that differ are experts that "
        "prefer a language.",
    ),
    (
        "routing_curves.png",
        "Entropy of the routing probabilities and the busiest expert's load by batch",
        "Routers over training, one line per layer: entropy of a masked frame's "
        "probabilities (1: all experts alike), and the load of the busiest expert (1: "
        "a fair share).",
    ),
)


@dataclass(frozen=True)
class Image:
    """A picture inside the page."""

    uri: str
    alt: str
    caption: str


def find_results(expdir: Path, results: Path | None = None) -> Path:
    """Return the results.json to report.

    Without ``results`` (a file, or the folder it is in) it is the recipe's, or what
    stage 8 wrote where that is newer or nothing else is there.

    Raises:
        RecipeError: There is none.
    """
    if results is not None:
        found = [results if results.suffix == ".json" else results / RESULTS]
    else:
        found = [expdir / RESULTS, expdir / "analysis" / "results" / RESULTS]
    there = [path for path in found if path.is_file()]
    if not there:
        raise RecipeError(
            f"{found[0]}: file not found; expected what stage 12 of run.sh writes, or "
            "stage 8 for a pretraining without heads; run it, or name the folder of "
            "another results.json with --results"
        )
    return max(there, key=lambda path: path.stat().st_mtime)


def write_report(
    expdir: str | Path, results: Path, output: Path, clips: int = CLIPS
) -> Path:
    """Write the page of a results.json, with ``clips`` utterances of a language.

    Raises:
        RecipeError: The file is not what this version writes.
    """
    write_text(output, report_page(Path(expdir), results, clips))
    return output


def report_page(expdir: Path, results: Path, clips: int = CLIPS) -> str:
    """Return the page; see :func:`write_report`."""
    data = json.loads(results.read_text(encoding="utf-8"))
    if not {"question", "changes", "tables", "sources"} <= data.keys():
        raise RecipeError(
            f"{results}: found a file of an earlier version, without the keys "
            "question, changes, tables and sources; run stage 12 again"
        )
    question, source = data["question"], data["sources"]
    system = question["system"] if question else ""
    langs = question["new_langs"] + question["old_langs"] if question else []
    folder = expdir / (source.get("analysis") or "-")
    title = "Results"
    if question:
        names = data.get("names", {})
        learned, kept = (
            ", ".join(names.get(lang, lang) for lang in question[f"{age}_langs"])
            for age in ("new", "old")
        )
        title = f"{system}: new languages {learned}; old {kept or 'none'}"
    return render_html(
        "experiment.html.jinja",
        {"look": _look, "strong": _strong},
        title=title,
        parts=[part for part in _PARTS if part[0] != "changes" or data["changes"]],
        data=data,
        lines=five_lines(data),
        sure=how_sure(data) if question else "",
        missing=_missing(expdir, results),
        panels=panels(data["changes"]),
        sections=sections(data),
        systems=by_system(data),
        method=method(data),
        curves=_images(folder, _CURVES),
        routing=_images(folder, _ROUTING),
        listening=listening_examples(
            expdir, source.get("runs", []), system, langs, clips
        ),
    )


def _missing(expdir: Path, results: Path) -> list[str]:
    """Say that the figures are older than what was trained since."""
    newer = [
        path
        for path in expdir.glob("analysis*/forgetting.json")
        if path.stat().st_mtime > results.stat().st_mtime
        and path.parent != results.parent.parent
        and json.loads(results.read_text("utf-8"))["sources"].get("analysis")
        == path.parent.name
    ]
    return [
        f"{path} is newer than {results}: the pretraining was analysed again since; "
        "run stages 10 to 12."
        for path in newer
    ]


def _look(line: Line) -> str:
    """Name the style of a line: its verdict, or that it says nothing."""
    return "nothing" if line.text.startswith("nothing") else _STYLES[line.verdict]


def _strong(text: str) -> Markup:
    """Set language and points off from the rest of a line."""
    return Markup(_CHANGE.sub(r"<strong>\1</strong>", str(escape(text))))


def panels(changes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Place every change on a line from -1 to +1 of its panel's scale, in per cent."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for change in changes:
        key = change["task"], change["reference"]
        groups.setdefault(key, []).append(change)
    made = []
    for (task, reference), rows in groups.items():
        reach = scale([rows])

        def place(value: float | None, reach: float = reach) -> float | None:
            return None if value is None else round(50 + 48 * value / reach, 2)

        placed = [
            {
                "lang": row["lang"],
                "old": row["old"],
                "value": short(row["value"]),
                "points": in_points(row),
                "verdict": row["verdict"],
                "look": _STYLES[row["verdict"]],
                "at": place(row["value"]),
                "low": place(row["low"]),
                "high": place(row["high"]),
            }
            for row in rows
        ]
        panel = {"title": task[0].upper() + task[1:], "reference": reference}
        made.append(panel | {"reach": reach, "rows": placed})
    return made


def _images(folder: Path, files: Sequence[tuple[str, str, str]]) -> list[Image]:
    return [
        Image(data_uri((folder / name).read_bytes(), "image/png"), alt, caption)
        for name, alt, caption in files
        if (folder / name).is_file()
    ]
