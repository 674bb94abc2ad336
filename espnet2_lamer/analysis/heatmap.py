"""Heat-maps of expert use: layer x expert x language, and the paper's Fig. 2."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.picture import new_picture, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_COLOURS = "Blues"
# Large enough for the figure written in each cell.
_CELL_INCHES = (0.48, 0.34)

Row = Mapping[str, Any]


def plot_layers(
    rows: Sequence[Row], path: str | Path, value: str = "mean_gate"
) -> None:
    """Draw one panel per language: a row per layer, a column per expert.

    Args:
        rows: :meth:`espnet2_lamer.analysis.routing.RoutingStatistics.table`.
        path: The PNG to write.
        value: Which column: ``mean_gate``, ``mean_prob`` or ``dispatch_share``.
            Experts that a layer does not have are hatched.

    Raises:
        RecipeError: There are no rows, because no layer has a router.
    """
    routers = _routers(rows, path)
    langs = sorted({row["lang"] for row in rows})
    cells = {(row["layer"], row["router"], row["lang"]): row[value] for row in rows}
    panels = {
        lang: [cells.get((*router, lang), []) for router in routers] for lang in langs
    }
    names = _router_names(routers)
    _draw(panels, names, "layer", value, path, columns=min(len(langs), 4))


def plot_languages(
    rows: Sequence[Row],
    path: str | Path,
    layers: Sequence[int] | None = None,
    value: str = "mean_gate",
) -> None:
    """Draw one panel per layer: a row per language (Lamer-SSL, Fig. 2).

    Args:
        rows: As for :func:`plot_layers`.
        path: The PNG to write.
        layers: Block numbers from 1; by default four, from the shallowest to the
            deepest layer with a router (the paper: 1, 9, 13, 21).
        value: As for :func:`plot_layers`.

    Raises:
        RecipeError: There are no rows for the layers.
    """
    if layers is None:
        present = sorted({row["layer"] for row in rows})
        steps = np.linspace(0, len(present) - 1, min(4, len(present)))
        layers = [present[round(step)] for step in steps] if present else []
    chosen = [row for row in rows if row["layer"] in layers]
    routers = _routers(chosen, path)
    langs = sorted({row["lang"] for row in chosen})
    cells = {(row["layer"], row["router"], row["lang"]): row[value] for row in chosen}
    panels = {
        f"layer {name}": [cells.get((*router, lang), []) for lang in langs]
        for router, name in zip(routers, _router_names(routers), strict=True)
    }
    _draw(panels, langs, "", value, path, columns=1)


def _routers(rows: Sequence[Row], path: str | Path) -> list[tuple[int, str]]:
    if not rows:
        raise RecipeError(
            f"{path}: nothing to draw, no layer asked for has a router; a model with "
            "at most one expert a layer has none"
        )
    return sorted({(row["layer"], row["router"]) for row in rows})


def _router_names(routers: Sequence[tuple[int, str]]) -> list[str]:
    short = {"ffn": "", "intermediate_dense": " in", "output_dense": " out"}
    return [f"{layer}{short.get(name, ' ' + name)}" for layer, name in routers]


def _draw(
    panels: Mapping[str, Sequence[Sequence[float]]],
    row_names: Sequence[str],
    row_axis: str,
    value: str,
    path: str | Path,
    columns: int,
) -> None:
    """Draw panels of ragged rows on one colour scale and write the PNG."""
    experts = max(len(values) for panel in panels.values() for values in panel)
    high = max(v for panel in panels.values() for values in panel for v in values)
    lines = -(-len(panels) // columns)
    width = columns * (experts * _CELL_INCHES[0] + 0.7) + 1.2
    height = lines * (len(row_names) * _CELL_INCHES[1] + 0.7) + 0.3
    figure = new_picture(width, height)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    image = None
    for axes, (title, panel) in zip(grid.flat, panels.items(), strict=False):
        image = _panel(axes, panel, experts, high)
        axes.set_title(title, fontsize=10)
        axes.set_yticks(range(len(row_names)), row_names, fontsize=8)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel(row_axis)
    ragged = any(len(v) < experts for panel in panels.values() for v in panel)
    figure.supxlabel(
        "expert (hatched: the layer does not have it)" if ragged else "expert",
        fontsize=10,
    )
    _colour_bar(figure, image, grid, value)
    save_picture(figure, path)


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


def _colour_bar(
    figure: "Figure", image: "AxesImage | None", grid: NDArray[Any], value: str
) -> None:
    bar = figure.colorbar(image, ax=grid, shrink=0.9, pad=0.02, aspect=30)
    bar.set_label(value.replace("_", " "), fontsize=9)
    bar.ax.tick_params(labelsize=8)
