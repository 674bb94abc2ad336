"""Finished cells in one text file: a matrix goes on where their files are not.

``records.jsonl`` has a line per list of utterances, then one per cell with what its
``record.json`` has; figures name the list by its number and have numerator and
denominator per utterance, so that every interval can be computed again.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.experiments.cells import Cell
from espnet2_lamer.experiments.matrix import RECORD, SOURCE, Store
from espnet2_lamer.fileio.atomic import write_json

_FIELDS = {"key", "system", "seed", "seconds", "measures"}


def pack_records(cells: Sequence[Cell], store: Store) -> str:
    """Return the text of ``records.jsonl``: those of ``cells`` that are done."""
    lists: dict[tuple[str, ...], int] = {}
    lines = []
    for cell in cells:
        record = store.read(store.cell(cell.key))
        if record is None:
            continue
        measures = []
        for measure in record["measures"]:
            parts = measure["parts"]
            number = lists.setdefault(tuple(parts), len(lists))
            pairs = [[_short(value) for value in pair] for pair in parts.values()]
            measures.append({**measure, "parts": pairs, "utterances": number})
        # One that was taken over may have another name in its own definition.
        named = {"key": cell.key, "system": cell.system, "seed": cell.seed}
        kept = {k: v for k, v in record.items() if k != SOURCE and k not in named}
        lines.append({**named, **kept, "measures": measures})
    everything = [{"utterances": names} for names in lists] + lines
    return "".join(
        json.dumps(one, separators=(",", ":"), ensure_ascii=False) + "\n"
        for one in everything
    )


def _short(value: float) -> float:
    return int(value) if float(value).is_integer() else value


def take_records(cells: Sequence[Cell], store: Store, path: str | Path) -> int:
    """Count cells as done that ``path`` has and ``store`` has not.

    Returns:
        Their number.

    Raises:
        RecipeError: ``path`` is no such file, damaged, or has no cell of ``cells``.
    """
    path = Path(path)
    wanted = {cell.key: cell for cell in cells}
    found = {record["key"]: record for record in read_records(path)}
    known = [key for key in found if key in wanted]
    if not known:
        raise RecipeError(
            f"{path}: found {len(found)} cells, none of them of this definition; a "
            "cell is known by its options, config files, seed and data, so one that "
            "was run with others, or by a version that measures something else, is "
            "another"
        )
    taken = 0
    for key in known:
        if store.read(store.cell(key)) is None:
            write_json(store.cell(key) / RECORD, found[key])
            taken += 1
    logging.info(
        "%s: %d cells taken over, %d are done here, %d are not of this definition",
        path,
        taken,
        len(known) - taken,
        len(found) - len(known),
    )
    return taken


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the cells of a ``records.jsonl`` as their own ``record.json`` has them.

    Raises:
        RecipeError: A line is none of :func:`pack_records`.
    """
    lists: list[list[str]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: {error}; expected a records.jsonl") from error
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            if "utterances" in values:
                lists.append(values["utterances"])
                continue
            if missing := sorted(_FIELDS - set(values)):
                raise KeyError(missing[0])
            yield {**_unpacked(values, lists), SOURCE: str(path)}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise RecipeError(
                f"{path}: line {number}: {type(error).__name__}: {error}; expected a "
                "list of utterances or a cell, as bin.experiment writes records.jsonl"
            ) from error


def _unpacked(values: dict[str, Any], lists: list[list[str]]) -> dict[str, Any]:
    measures = []
    for measure in values["measures"]:
        names = lists[measure.pop("utterances")]
        parts = dict(zip(names, measure["parts"], strict=True))
        measures.append({**measure, "parts": parts})
    return {**values, "measures": measures}
