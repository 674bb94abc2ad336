"""What a training logged over its epochs, as CSV and PNG."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from espnet2_lamer.analysis.plots import Line, plot_lines
from espnet2_lamer.fileio.atomic import write_text
from espnet2_lamer.train.monitor import read_curves

MEASURES = {"cka": "CKA to the base", "probe": "phone accuracy"}
COLUMNS = ("epoch", "updates", "language", "layer", *MEASURES, "probe_of_base")


def write_curves(
    experiments: Mapping[str, Path], csv_path: Path, keys: tuple[str, ...]
) -> None:
    """Write values of several experiments to a CSV, and drawn to a PNG beside it."""
    curves = {name: read_curves(path) for name, path in experiments.items()}
    _write_csv(
        csv_path,
        ("experiment", "epoch", "phase", *keys),
        (row | {"experiment": name} for name, rows in curves.items() for row in rows),
    )
    panels: dict[str, list[Line]] = {key: [] for key in keys}
    for number, (name, rows) in enumerate(curves.items()):
        for phase, style in (("train", ":"), ("valid", "-")):
            look = {"style": style, "colour": f"C{number}"}
            for key, lines in panels.items():
                points = [row for row in rows if row["phase"] == phase and key in row]
                epochs, values = ([p[k] for p in points] for k in ("epoch", key))
                lines.append(Line(epochs, values, f"{name}, {phase}", **look))
    plot_lines({"": panels}, csv_path.with_suffix(".png"), "epoch")


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
