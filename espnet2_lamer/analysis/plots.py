"""Pictures: lines over layers or time, heat-maps of expert use, curves of trainings."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_text
from espnet2_lamer.fileio.picture import new_picture, save_picture
from espnet2_lamer.train.monitor import read_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

MEASURES = {"cka": "CKA to the base", "probe": "phone accuracy"}
COLUMNS = ("epoch", "updates", "language", "layer", *MEASURES, "probe_of_base")
_COLOURS = "Blues"
# Large enough for the number written in each cell.
_CELL_INCHES = (0.48, 0.34)

Row = Mapping[str, Any]
Router = tuple[int, str]


@dataclass(frozen=True)
class Line:
    """One line of a panel as matplotlib takes it; ``intervals`` become a band."""

    x: Sequence[float]
    y: Sequence[float]
    label: str | None = None
    intervals: Sequence[Sequence[float]] = ()
    style: str = "o-"
    colour: str = "C0"


def plot_lines(
    rows: Mapping[str, Mapping[str, Sequence[Line]]],
    path: str | Path,
    xlabel: str,
    chance: float | None = None,
    note: str = "",
) -> None:
    """Draw rows of panels of lines, the legend in the first panel, as PNG.

    ``rows`` are name of the values -> title of a panel -> its lines; every row has the
    same panels. ``chance`` is the level of guessing; ``note`` stands above all panels.
    """
    columns = max(map(len, rows.values()))
    width = 3.2 * columns + 1.6 if columns > 1 else 6.4
    picture = new_picture(width, 3.2 * len(rows) + 0.2)
    grid = picture.subplots(len(rows), columns, squeeze=False, sharey="row")
    for places, (ylabel, panels) in zip(grid, rows.items(), strict=True):
        places[0].set_ylabel(ylabel)
        for axes, (title, lines) in zip(places, panels.items(), strict=True):
            for line in lines:
                look = {"ms": 3, "color": line.colour, "label": line.label}
                axes.plot(line.x, line.y, line.style, **look)
                if line.intervals:
                    low, high = zip(*line.intervals, strict=True)
                    axes.fill_between(line.x, low, high, color=line.colour, alpha=0.15)
            if chance is not None:
                axes.axhline(chance, color="0.6", linestyle=":", label="chance")
            axes.set_title(title, fontsize=10)
            axes.set_xlabel(xlabel)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(axis="y", color="0.92")
            axes.set_axisbelow(True)
    grid[0][0].legend(fontsize=8)
    if note:
        picture.suptitle(note, fontsize=8)
    save_picture(picture, path, dpi=110)


def plot_layers(rows: Sequence[Row], path: str | Path) -> None:
    """Draw one panel per language: a row per layer, a column per expert.

    ``rows`` are a :meth:`~espnet2_lamer.analysis.routing.RoutingStatistics.table`; the
    cells are mean gates. Experts that a layer does not have are hatched. Raises
    RecipeError where there are no rows, because no layer has a router.
    """
    routers, langs, cells = _cells(rows, path)
    panels = {
        lang: [cells.get((router, lang), []) for router in routers] for lang in langs
    }
    _draw(panels, list(routers.values()), "layer", path, columns=min(len(langs), 4))


def plot_languages(rows: Sequence[Row], path: str | Path) -> None:
    """Draw one panel per layer: a row per language (Lamer-SSL, Fig. 2).

    There are at most four, from the shallowest to the deepest layer with a router (the
    paper: 1, 9, 13, 21); else as :func:`plot_layers`.
    """
    present = sorted({row["layer"] for row in rows})
    steps = np.linspace(0, len(present) - 1, min(4, len(present)))
    layers = [present[round(step)] for step in steps]
    routers, langs, cells = _cells([r for r in rows if r["layer"] in layers], path)
    panels = {
        f"layer {name}": [cells.get((router, lang), []) for lang in langs]
        for router, name in routers.items()
    }
    _draw(panels, langs, "", path, columns=1)


def _cells(
    rows: Sequence[Row], path: str | Path
) -> tuple[dict[Router, str], list[str], dict[tuple[Router, str], Sequence[float]]]:
    """Routers and their names, languages, and the mean gates of each pair of them."""
    if not rows:
        raise RecipeError(
            f"{path}: nothing to draw, no layer has a router; a model with at most one "
            "expert a layer has none"
        )
    cells = {
        ((row["layer"], row["router"]), row["lang"]): row["mean_gate"] for row in rows
    }
    short = {"ffn": "", "intermediate_dense": " in", "output_dense": " out"}
    routers = {
        (layer, name): f"{layer}{short.get(name, ' ' + name)}"
        for layer, name in sorted({router for router, _ in cells})
    }
    return routers, sorted({lang for _, lang in cells}), cells


def _draw(
    panels: Mapping[str, Sequence[Sequence[float]]],
    row_names: Sequence[str],
    row_axis: str,
    path: str | Path,
    columns: int,
) -> None:
    """Draw panels of ragged rows on one colour scale and write the PNG."""
    every = [values for panel in panels.values() for values in panel]
    experts, high = max(map(len, every)), max(v for values in every for v in values)
    lines = -(-len(panels) // columns)
    width = columns * (experts * _CELL_INCHES[0] + 0.7) + 1.2
    height = lines * (len(row_names) * _CELL_INCHES[1] + 0.7) + 0.3
    picture = new_picture(width, height)
    grid = picture.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    image = None
    for axes, (title, panel) in zip(grid.flat, panels.items(), strict=False):
        image = _panel(axes, panel, experts, high)
        axes.set_title(title, fontsize=10)
        axes.set_yticks(range(len(row_names)), row_names, fontsize=8)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel(row_axis)
    hatched = " (hatched: the layer does not have it)"
    ragged = min(map(len, every)) < experts
    picture.supxlabel("expert" + hatched * ragged, fontsize=10)
    bar = picture.colorbar(image, ax=grid, shrink=0.9, pad=0.02, aspect=30)
    bar.set_label("mean gate", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    save_picture(picture, path)


def _panel(
    axes: "Axes", panel: Sequence[Sequence[float]], experts: int, high: float
) -> "AxesImage":
    matrix: NDArray[np.float64] = np.full((len(panel), experts), np.nan)
    for i, values in enumerate(panel):
        matrix[i, : len(values)] = values
    axes.patch.set(hatch="////", facecolor="white", edgecolor="0.8")
    image = axes.imshow(matrix, cmap=_COLOURS, vmin=0, vmax=high, aspect="auto")
    axes.set_xticks(range(experts), range(1, experts + 1), fontsize=8)
    axes.tick_params(length=0)
    for (i, k), number in np.ndenumerate(matrix):
        if not np.isnan(number):
            colour = "white" if number > 0.6 * high else "black"
            text = f"{number:.2f}"
            axes.text(k, i, text, ha="center", va="center", fontsize=7, c=colour)
    return image


def write_curves(
    experiments: Mapping[str, Path], csv_path: Path, titles: Mapping[str, str]
) -> None:
    """Write values of several experiments to a CSV, and drawn to a PNG beside it.

    ``titles`` are those of the panels, by the key of what they show.
    """
    curves = {name: read_curves(path) for name, path in experiments.items()}
    _write_csv(
        csv_path,
        ("experiment", "epoch", "phase", *titles),
        (row | {"experiment": name} for name, rows in curves.items() for row in rows),
    )
    panels: dict[str, list[Line]] = {key: [] for key in titles}
    for number, (name, rows) in enumerate(curves.items()):
        for phase, style in (("train", ":"), ("valid", "-")):
            look = {"style": style, "colour": f"C{number}"}
            for key, lines in panels.items():
                points = [row for row in rows if row["phase"] == phase and key in row]
                epochs, values = ([p[k] for p in points] for k in ("epoch", key))
                lines.append(Line(epochs, values, f"{name}, {phase}", **look))
    named = {titles[key]: lines for key, lines in panels.items()}
    plot_lines({"": named}, csv_path.with_suffix(".png"), "epoch")


def write_routing_curves(path: Path, csv_path: Path) -> None:
    """Write how routers decide over a training to a CSV and a PNG beside it.

    ``path`` is ``routing.jsonl``: a line every so many batches. Per router the entropy
    of a masked frame's probabilities over that of a uniform choice, and the busiest
    expert's share of the selections times their number.
    """
    rows = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in map(json.loads, lines):
        for router in line["routers"]:
            masked, experts = router["masked"], router["experts"]
            row = {"batches": line["batches"], "layer": router["layer"] + 1}
            row |= {"router": router["router"], "dead": len(router["dead"])}
            row["entropy"] = masked["entropy"] / np.log(experts)
            rows.append(row | {"largest_load": max(masked["load"]) * experts})
    _write_csv(csv_path, tuple(rows[0]), rows)
    panels: dict[str, list[Line]] = {"entropy": [], "largest_load": []}
    routers = dict.fromkeys((row["layer"], row["router"]) for row in rows)
    for number, (layer, name) in enumerate(routers):
        mine = [r for r in rows if (r["layer"], r["router"]) == (layer, name)]
        label = f"layer {layer}" if name == "ffn" else f"layer {layer} {name}"
        for key, drawn in panels.items():
            x, y = ([row[k] for row in mine] for k in ("batches", key))
            drawn.append(Line(x, y, label, colour=f"C{number % 10}"))
    titles = {"entropy": "entropy", "largest_load": "busiest expert's load"}
    named = {titles[key]: drawn for key, drawn in panels.items()}
    plot_lines({"": named}, csv_path.with_suffix(".png"), "batches")


def read_forgetting(path: Path) -> list[dict[str, Any]]:
    """Read ``forgetting.jsonl``: a row per validation, language and layer.

    The keys are :data:`COLUMNS`; without phones ``probe`` and ``probe_of_base`` are
    ``None``.
    """
    rows = []
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        for lang in line["cka"]:
            for index, layer in enumerate(line["layers"]):
                row = {"epoch": line["epoch"], "updates": line["updates"]}
                row |= {"language": lang, "layer": layer}
                for key in (*MEASURES, "probe_of_base"):
                    values = line[key].get(lang)
                    row[key] = None if values is None else values[index]
                rows.append(row)
    return rows


def write_forgetting_curves(path: Path, csv_path: Path, langs: Sequence[str]) -> None:
    """Write CKA and phone probe of a training to a CSV and a PNG beside it.

    Panels follow the order of ``langs``; other languages come after them.
    """
    rows = read_forgetting(path)
    _write_csv(csv_path, COLUMNS, rows)
    found = {row["language"] for row in rows}
    langs = [lang for lang in langs if lang in found] + sorted(found - set(langs))
    drawn: dict[str, dict[str, list[Line]]] = {}
    for key, name in MEASURES.items():
        measured = [row for row in rows if row[key] is not None]
        if not measured:
            continue
        drawn[name] = {lang: [] for lang in langs}
        for number, layer in enumerate(sorted({row["layer"] for row in rows})):
            for lang, lines in drawn[name].items():
                where = lang, layer
                points = [r for r in measured if (r["language"], r["layer"]) == where]
                updates, colour = [row["updates"] for row in points], f"C{number}"
                values = [row[key] for row in points]
                lines.append(Line(updates, values, f"layer {layer}", colour=colour))
                if key == "probe":
                    base = [row["probe_of_base"] for row in points]
                    lines.append(Line(updates, base, style="--", colour=colour))
    note = "dashed: the base" if MEASURES["probe"] in drawn else ""
    plot_lines(drawn, csv_path.with_suffix(".png"), "updates", note=note)


def _write_csv(
    path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    # Floats with five digits, as text: others, and what is not there, as they are.
    texts = [
        {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()}
        for row in rows
    ]
    frame = pd.DataFrame(texts, columns=columns, dtype=object)
    write_text(path, frame.to_csv(index=False, lineterminator="\n"))
