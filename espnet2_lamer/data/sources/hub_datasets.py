"""Hugging Face datasets: saved on disk, files of Parquet or Arrow, or by their id."""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from espnet2_lamer.data.sets import Utterance
from espnet2_lamer.data.sources.rows import Reading, check_unique, choose_names, row
from espnet2_lamer.data.sources.source import Source, split_of
from espnet2_lamer.errors import RecipeError, require, short_reason

_AUDIO = ("audio", "speech", "file", "path")
_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_FORMATS = {".parquet": "parquet", ".arrow": "arrow"}
# By a rule of its own a whole dataset is called so.
_WHOLE = "train"


def read(source: Source, reading: Reading) -> list[Utterance]:
    """Read every split of a dataset, or those of ``only=NAME+NAME``.

    Columns are those of :data:`~.rows.NAMES` or of the settings; audio that the rows
    hold is written out, once; audio that they name stays where it is. No code of a
    dataset is run. By an id, what the hub's cache has is read without a network.

    Raises:
        RecipeError: It is not there, is damaged, or a row or column is not as expected.
    """
    require("datasets", f"reading {source.path}")
    with _explained(source):
        splits, archives = _open(source)
    wanted = source.settings.get("only", "").split("+")
    if wanted != [""]:
        if unknown := [name for name in wanted if name not in splits]:
            raise RecipeError(
                f"{source.path}: no split {unknown[0]!r}; found {', '.join(splits)}"
            )
        splits = {name: splits[name] for name in wanted}
    if archives:
        reading.store.open(source, archives)
    rows: list[Utterance] = []
    for name, table in splits.items():
        split = split_of(name)
        if not split and len(splits) > 1 and "split" not in source.settings:
            raise RecipeError(
                f"{source.path}: split {name!r} is none of train, validation and test; "
                f"say datasets:{source.path},only=NAME+NAME, or split=train for all"
            )
        with _explained(source):
            rows += _read(source, name, table, reading, split)
    if not rows:
        raise RecipeError(f"{source.path}: no rows in {', '.join(splits) or 'it'}")
    check_unique(rows)
    return rows


@contextmanager
def _explained(source: Source) -> Iterator[None]:
    """Turn what the library raises into a message."""
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    try:
        yield
    except RecipeError:
        raise
    except (DatasetsError, ArrowException, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in (28, 122):  # disk full
            raise
        reason = short_reason(error.__cause__ or error)
        if Path(source.path).exists():
            raise RecipeError(
                f"{source.path}: cannot be read as a dataset ({reason}); save it again "
                "by save_to_disk"
            ) from None
        raise RecipeError(
            f"datasets:{source.path}: {reason}. Without a network only what the cache "
            "has can be read: fetch it where there is one (load_dataset), copy the "
            "folder HF_HOME names, or save_to_disk and name that folder; of several "
            f"configurations name one: datasets:{source.path},config=NAME"
        ) from None


def _open(source: Source) -> tuple[dict[str, Any], list[Path]]:
    """Return the tables by split, and the files they are in."""
    from datasets import load_dataset

    path = Path(source.path)
    if not path.exists():
        if not _ID.fullmatch(source.path):
            raise RecipeError(
                f"{source.path}: neither a file or folder nor the id of a dataset, "
                "such as google/fleurs"
            )
        logging.info("%s: from the hub, or its cache", source.path)
        table = load_dataset(source.path, source.settings.get("config"))
        return dict(table), [Path(f) for f in _cache_files(table)]
    if "config" in source.settings:
        raise RecipeError(f"{path}: config is of a dataset of the hub; leave it out")
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved(path)
    files = _files(path)
    kinds = {_FORMATS[file.suffix.lower()] for file in files}
    if not files or len(kinds) > 1:
        raise RecipeError(
            f"{path}: {'both .parquet and .arrow' if files else 'no'} files; expected "
            ".parquet or .arrow, or what save_to_disk writes"
        )
    by_split: dict[str, list[str]] = {}
    for file in files:
        by_split.setdefault(
            split_of(file.stem) or split_of(file.parent.name) or _WHOLE, []
        ).append(str(file))
    # Streamed: read where they are, not copied into a cache.
    tables = {
        name: load_dataset(
            *kinds, data_files={_WHOLE: own}, split=_WHOLE, streaming=True
        )
        for name, own in by_split.items()
    }
    return tables, files


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in _FORMATS and file.is_file()
    )


def _saved(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """Open what ``save_to_disk`` wrote, whose list of files stays in its folder."""
    from datasets import DatasetDict, load_from_disk

    for state in sorted(path.rglob("state.json")):
        for one in json.loads(state.read_text(encoding="utf-8"))["_data_files"]:
            if os.path.basename(one["filename"]) != one["filename"]:
                raise RecipeError(
                    f"{state}: names the file {one['filename']!r}, expected one in its "
                    "folder"
                )
    table = load_from_disk(str(path))
    tables = dict(table) if isinstance(table, DatasetDict) else {_WHOLE: table}
    return tables, _files(path)


def _cache_files(tables: Mapping[str, Any]) -> Iterator[str]:
    for table in tables.values():
        yield from (file["filename"] for file in table.cache_files)


def _read(
    source: Source, name: str, table: Any, reading: Reading, split: str
) -> Iterable[Utterance]:
    from datasets import Audio, ClassLabel

    features = dict(table.features or {})
    column = _audio_column(source, features)
    others = [key for key in features if key != column]
    roles = choose_names(source, others, name)
    if isinstance(features[column], Audio):
        table = table.cast_column(column, Audio(decode=False))
    times = [key for key in ("start", "end") if key in others]
    table = table.select_columns([column, *dict.fromkeys(roles.values()), *times])
    labels = {k: f for k, f in features.items() if isinstance(f, ClassLabel)}
    base = Path(source.path).absolute()
    base = base if base.is_dir() else base.parent
    for number, record in enumerate(table):
        where = f"{source.path}, {name}, row {number}"
        values = {role: record[key] for role, key in roles.items()}
        for role, key in roles.items():
            if key in labels and values[role] is not None:
                values[role] = labels[key].int2str(values[role])
        utt_id = values.pop("id", None)
        if utt_id is None:
            utt_id = f"{source.name}_{name}_{number:07d}"
        begin, end = (record.get(key) for key in ("start", "end"))
        span = (begin or 0.0, end) if begin or end else None
        one = row(source, str(utt_id), "", values, where, span, split)
        one.path = _audio(one, record[column], where, reading, base)
        yield one


def _audio_column(source: Source, features: Mapping[str, Any]) -> str:
    from datasets import Audio

    asked = source.settings.get("audio_column")
    typed = [name for name, kind in features.items() if isinstance(kind, Audio)]
    named = [name for name in _AUDIO if name in features]
    found = [asked] if asked else typed or named[:1]
    if len(found) != 1 or found[0] not in features:
        raise RecipeError(
            f"{source.path}: {'no' if len(found) < 2 else 'several'} audio column"
            f"{f' {asked!r}' if asked else ''}; found {', '.join(features) or 'none'}; "
            "say datasets:...,audio_column=NAME (text_column, lang_column, "
            "speaker_column and id_column likewise)"
        )
    return found[0]


def _audio(one: Utterance, value: Any, where: str, reading: Reading, base: Path) -> str:
    """Return the path of a row's audio, written out if the row holds it."""
    held = value if isinstance(value, dict) else {}
    data, name = held.get("bytes"), held.get("path")
    if isinstance(value, bytes):
        data = value
    elif isinstance(value, str):
        name = value
    if data is not None and not isinstance(data, bytes):
        data = None
    if data is None and (not isinstance(name, str) or not name or "://" in name):
        raise RecipeError(
            f"{where}: no audio, found {str(value)[:60]!r}; expected a file's bytes, "
            "or its path; take the row out"
        )
    if data is None:
        return str(base / name)
    if not reading.wants(one.lang):
        return ""
    suffix = Path(name or "").suffix.lower()
    return reading.store.add(one.utt_id, data, suffix, where)
