"""What a training forgot over its epochs, as CSV and PNG."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espnet2_lamer.fileio.atomic import atomic_path, write_text

FIGURES = ("cka", "probe")
COLUMNS = ("epoch", "updates", "language", "layer", *FIGURES, "probe_of_base")


def read_forgetting(path: Path) -> list[dict[str, Any]]:
    """Read ``forgetting.jsonl`` of a training.

    Returns:
        One row per validation, language and layer, with the keys :data:`COLUMNS`;
        without phones ``probe`` and ``probe_of_base`` are ``None``.
    """
    rows = []
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        for lang in line["cka"]:
            for index, layer in enumerate(line["layers"]):
                row = {"epoch": line["epoch"], "updates": line["updates"]}
                row |= {"language": lang, "layer": layer}
                for key in (*FIGURES, "probe_of_base"):
                    values = line[key].get(lang)
                    row[key] = None if values is None else values[index]
                rows.append(row)
    return rows


def write_forgetting_curves(path: Path, csv_path: Path, langs: Sequence[str]) -> None:
    """Write CKA and phone probe per language and layer to a CSV and a PNG beside it.

    Args:
        path: ``forgetting.jsonl``.
        csv_path: ``NAME.csv``; the picture is ``NAME.png``.
        langs: Languages in the order of the panels; others follow.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read_forgetting(path)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow(
            f"{row[key]:.5g}" if isinstance(row[key], float) else row[key]
            for key in COLUMNS
        )
    write_text(csv_path, buffer.getvalue())
    found = {row["language"] for row in rows}
    langs = [lang for lang in langs if lang in found] + sorted(found - set(langs))
    layers = sorted({row["layer"] for row in rows})
    kinds = [k for k in FIGURES if any(row[k] is not None for row in rows)]
    figure, axes = pyplot.subplots(
        len(kinds),
        len(langs),
        figsize=(3.5 * len(langs), 3 * len(kinds)),
        sharey="row",
        squeeze=False,
    )
    titles = {"cka": "CKA to the base", "probe": "phone accuracy"}
    for axes_row, kind in zip(axes, kinds, strict=True):
        axes_row[0].set_ylabel(titles[kind])
        for axis, lang in zip(axes_row, langs, strict=True):
            axis.set_title(lang)
            axis.set_xlabel("updates")
            for number, layer in enumerate(layers):
                points = [
                    row
                    for row in rows
                    if (row["language"], row["layer"]) == (lang, layer)
                    and row[kind] is not None
                ]
                updates = [row["updates"] for row in points]
                color = f"C{number}"
                axis.plot(
                    updates,
                    [row[kind] for row in points],
                    "o-",
                    color=color,
                    label=f"layer {layer}",
                )
                if kind == "probe":
                    base = [row["probe_of_base"] for row in points]
                    axis.plot(updates, base, "--", color=color)
    axes[0][0].legend(fontsize=7)
    if "probe" in kinds:
        figure.suptitle("dashed: the base", fontsize=8)
    figure.tight_layout()
    with atomic_path(csv_path.with_suffix(".png")) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    pyplot.close(figure)
