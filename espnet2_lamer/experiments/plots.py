"""The picture of an experiment: every difference to the baseline with its interval."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from espnet2_lamer.experiments.figures import AVERAGE, Figure
from espnet2_lamer.experiments.tables import Tables
from espnet2_lamer.fileio.picture import new_picture, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Told apart also without colour vision, and in print.
_BETTER, _WORSE, _UNTOLD = "#0072b2", "#d55e00", "0.6"


def plot_differences(tables: Tables, path: str | Path) -> bool:
    """Draw a panel per measure and language, a point per system.

    A row of panels is one kind of measure on one scale. A point is filled where the
    interval leaves 0 out. Left out is what has no better direction, and what is of no
    language: layer by layer, the share that trains. Returns whether there was a
    difference to draw; nothing is written otherwise.
    """
    base = tables.definition.baseline
    grid: dict[str, dict[str, list[Figure]]] = {}
    for figure in tables.figures:
        found = figure.differences.get(base)
        label = _label(figure, tables.figures)
        if found and found.interval and label and figure.kind.better != "neither":
            kind = grid.setdefault(figure.name.kind, {})
            kind.setdefault(label, []).append(figure)
    if not grid:
        return False
    found = {label for panels in grid.values() for label in panels}
    langs = sorted(found, key=lambda label: (label != AVERAGE, label))
    systems = list(tables.definition.systems)
    picture = new_picture(
        2.1 * len(langs) + 2.0, (0.2 * len(systems) + 0.75) * len(grid) + 0.5
    )
    panels = picture.subplots(
        len(grid), len(langs), squeeze=False, sharex="row", sharey=True
    )
    for line, (kind, by_lang) in zip(panels, grid.items(), strict=True):
        for axes, lang in zip(line, langs, strict=True):
            _panel(axes, by_lang.get(lang, []), systems, base)
            axes.set_title(f"{kind} {lang}", fontsize=8)
    # Shared by all panels; the first system on top.
    panels[0, 0].set_yticks(range(len(systems)), systems)
    panels[0, 0].set_ylim(len(systems) - 0.5, -0.5)
    picture.supxlabel(
        f"minus {base}, 95 % interval (blue: better, orange: "
        "worse, grey: cannot be told)",
        fontsize=8,
    )
    save_picture(picture, path, dpi=110)
    return True


def _label(figure: Figure, figures: Sequence[Figure]) -> str:
    """Name the panel of a figure: its language, and its unit if it has several."""
    name = figure.name
    same = {
        f.name.unit
        for f in figures
        if (f.name.kind, f.name.label) == (name.kind, name.label)
    }
    words = [name.label, f"({name.unit})" if len(same) > 1 else ""]
    return "" if name.layer is not None else " ".join(filter(None, words))


def _panel(
    axes: "Axes", figures: Sequence[Figure], systems: Sequence[str], base: str
) -> None:
    axes.axvline(0, color="0.3", linewidth=0.8)
    for figure in figures:
        found = figure.differences[base]
        low, high = found.interval
        colour, fill = _UNTOLD, "white"
        if found.told:
            improved = (low > 0) == (figure.kind.better == "higher")
            colour = fill = _BETTER if improved else _WORSE
        place = systems.index(figure.system)
        axes.plot([low, high], [place, place], color=colour, linewidth=1.5)
        axes.plot(found.value, place, "o", color=colour, mfc=fill, markersize=4)
    axes.tick_params(labelsize=7)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
