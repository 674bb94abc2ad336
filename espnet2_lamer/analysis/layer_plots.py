"""Figures over the layers of a model: probes and CKA."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet2_lamer.fileio.picture import new_picture, save_picture


@dataclass(frozen=True)
class Series:
    """One line of a plot.

    Attributes:
        layers: State numbers.
        values: One per layer.
        intervals: Lower and upper bound per layer; empty: none is drawn.
        dashed: Whether it is the one that is compared with.
    """

    layers: Sequence[int]
    values: Sequence[float]
    intervals: Sequence[Sequence[float]] = ()
    dashed: bool = False


def plot_over_layers(
    panels: Mapping[str, Mapping[str, Series]],
    path: str | Path,
    ylabel: str,
    chance: float | None = None,
) -> None:
    """Draw panels of lines with 95 % bands over the layers.

    Args:
        panels: Series by name, by title; at least one panel with one series.
        path: The PNG to write.
        ylabel: What the values are.
        chance: Where to draw the level of guessing.
    """
    width = 3.2 * len(panels) + 1.6 if len(panels) > 1 else 6.4
    figure = new_picture(width, 3.4)
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        for number, (name, series) in enumerate(lines.items()):
            style = "o--" if series.dashed else "o-"
            color = "0.45" if series.dashed else f"C{number}"
            axes.plot(
                series.layers, series.values, style, ms=3, color=color, label=name
            )
            if len(series.intervals):
                low, high = zip(*series.intervals, strict=True)
                axes.fill_between(series.layers, low, high, color=color, alpha=0.15)
        if chance is not None:
            axes.axhline(chance, color="0.6", linestyle=":", label="chance")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("layer")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    grid[0].set_ylabel(ylabel)
    grid[0].legend(fontsize=8)
    save_picture(figure, path, dpi=110)
