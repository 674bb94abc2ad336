"""Pictures: lines over layers or time, and heat-maps of expert use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.picture import new_picture, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

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
