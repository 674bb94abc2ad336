"""Pictures of the results: error rates with intervals, LID confusion."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from espnet2_lamer.evaluation.results import Results, TaskFigure
from espnet2_lamer.evaluation.runs import TRACKS
from espnet2_lamer.fileio.picture import new_picture, save_picture

# More languages than these and the cells are too small for a number.
_NUMBERED = 12
# Beyond this a picture would be wider than a screen can show.
_WIDEST_INCHES = 40.0


def write_plots(
    directory: str | Path, results: Results, figures: Sequence[TaskFigure]
) -> list[Path]:
    """Draw figures of heads, and the confusions of language identification.

    Returns:
        The files written: ``error_rate_TRACK.png``, ``accuracy_TRACK.png`` and one
        ``confusion_TASK.png`` per LID test.
    """
    directory = Path(directory)
    written = []
    for track in TRACKS:
        for kind in ("error rate", "accuracy"):
            chosen = [f for f in figures if f.task.track == track and f.kind == kind]
            if chosen:
                path = directory / f"{kind.replace(' ', '_')}_{track}.png"
                plot_rates(chosen, path)
                written.append(path)
    for task, row in results.identification.items():
        if task.part:
            continue
        # One training shows the pattern; several seeds would blur it.
        confusions = {
            system: next(iter(row[system].values())).confusion
            for system in results.systems
            if system in row
        }
        words = filter(None, (task.track, task.test, task.unit, task.train))
        name = re.sub(r"\W+", "_", " ".join(words))
        path = directory / f"confusion_{name}.png"
        plot_confusion(confusions, path)
        written.append(path)
    return written


def plot_rates(figures: Sequence[TaskFigure], path: str | Path) -> None:
    """Draw one point with its 95 % interval per test set and system."""
    tests = list(dict.fromkeys(_test_name(f) for f in figures))
    systems = list(dict.fromkeys(f.system for f in figures))
    width = min(_WIDEST_INCHES, 2.5 + len(tests) * (0.5 + 0.18 * len(systems)))
    picture = new_picture(width, 4.2)
    axes = picture.subplots()
    for place, system in enumerate(systems):
        own = [f for f in figures if f.system == system]
        shift = (place - (len(systems) - 1) / 2) * 0.7 / len(systems)
        x = [tests.index(_test_name(f)) + shift for f in own]
        values = np.array([f.measure.value for f in own])
        bounds = np.array(
            [f.measure.interval or (v, v) for f, v in zip(own, values, strict=True)]
        )
        # Wilson's interval may lie on one side of an extreme share.
        arms = np.clip([values - bounds[:, 0], bounds[:, 1] - values], 0, None)
        axes.errorbar(x, values, yerr=arms, fmt="o", capsize=3, label=system)
    axes.set_xticks(range(len(tests)), tests, fontsize=8)
    if len(tests) > 4:
        axes.tick_params(axis="x", labelrotation=60)
    axes.set_xlim(-0.6, len(tests) - 0.4)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"{figures[0].kind} (%), 95 % interval")
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    picture.legend(loc="outside upper center", ncols=len(systems), fontsize=8)
    save_picture(picture, path)


def plot_confusion(
    confusions: Mapping[str, Mapping[str, Mapping[str, int]]], path: str | Path
) -> None:
    """Draw one panel per system: true language down, language found across.

    Colours are shares of the true language's utterances; the numbers are counts, of
    ``confusions[system][true][found]``.
    """
    true = sorted({lang for rows in confusions.values() for lang in rows})
    names = {n for rows in confusions.values() for row in rows.values() for n in row}
    found = [*true, *sorted(names - {*true})]
    cell = 0.42 if len(found) <= _NUMBERED else 0.12
    side = len(found) * cell + 1.2
    width = min(_WIDEST_INCHES, len(confusions) * side + 0.6)
    picture = new_picture(width, len(true) * cell + 1.4)
    panels = picture.subplots(1, len(confusions), squeeze=False, sharey=True)[0]
    image = None
    for axes, (system, rows) in zip(panels, confusions.items(), strict=True):
        counts = np.array([[rows.get(t, {}).get(f, 0) for f in found] for t in true])
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(system, fontsize=9)
        axes.set_xticks(range(len(found)), found, fontsize=7, rotation=90)
        axes.set_yticks(range(len(true)), true, fontsize=7)
        axes.set_xlabel("found", fontsize=8)
        if len(found) <= _NUMBERED:
            for (row, column), count in np.ndenumerate(counts):
                colour = "white" if shares[row, column] > 0.6 else "black"
                place = {"ha": "center", "va": "center", "fontsize": 7}
                axes.text(column, row, str(count), color=colour, **place)
    panels[0].set_ylabel("true", fontsize=8)
    picture.colorbar(image, ax=panels, shrink=0.8).set_label("share", fontsize=8)
    save_picture(picture, path)


def _test_name(figure: TaskFigure) -> str:
    lines = [figure.label, f"({figure.unit})"]
    if figure.task.train:
        lines.append(f"trained on {figure.task.train}")
    return "\n".join(lines)
