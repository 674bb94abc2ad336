"""A TSV file that lists utterances."""

import os
from collections import Counter
from pathlib import Path

from espnet2_lamer.data.audio_files import is_companion
from espnet2_lamer.data.languages import language_code
from espnet2_lamer.data.segments import read_times
from espnet2_lamer.data.sets import SPLITS, Utterance
from espnet2_lamer.data.sources.rows import COMPANION, Reading, check_unique
from espnet2_lamer.data.sources.source import Source
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.text import read_text

REQUIRED = ("utt_id", "path", "lang")
_AS_THEY_ARE = ("split", "text", "romanisation", "source")


def read(source: Source, reading: Reading) -> list[Utterance]:
    """Read a TSV manifest; other columns than the known ones are ignored.

    Columns are utt_id, path, lang (required, but for lang where the source has one),
    split, text, speaker, romanisation, source, start and end; no quoting; paths are
    relative to its folder. Rows with what a Mac's copy adds (``._a.wav``) are no audio.

    Raises:
        RecipeError: Missing file or column, a line with another number of columns than
            the header, a duplicate or unusable id, an unknown language or split, no
            rows.
    """
    path, lang = Path(source.path), source.settings.get("lang", "")
    if not path.is_file():
        raise RecipeError(f"{path}: manifest not found (a TSV file or a folder)")
    first, *lines = (line.rstrip("\r") for line in read_text(path).split("\n"))
    header = first.split("\t")
    required = [name for name in REQUIRED if name != "lang" or not lang]
    missing = [name for name in required if name not in header]
    if missing:
        raise RecipeError(
            f"{path}:1: missing column {', '.join(missing)}; found "
            f"{', '.join(header)}; the first line must name the columns, separated by "
            "tabs"
        )
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise RecipeError(f"{path}:1: column {twice[0]!r} occurs twice; rename one")
    rows = [
        _parse(path, f"{path}:{number}", line.split("\t"), header, lang)
        for number, line in enumerate(lines, 2)
        if line.strip()
    ]
    kept = [row for row in rows if not is_companion(row.path)]
    for row in rows:
        if is_companion(row.path):
            reading.leave_out(COMPANION, row.lang)
    rows = kept
    if not rows:
        raise RecipeError(f"{path}: only a header line; add one line per utterance")
    check_unique(rows)
    return rows


def _parse(
    path: Path, where: str, values: list[str], header: list[str], lang: str
) -> Utterance:
    if len(values) != len(header):
        raise RecipeError(
            f"{where}: found {len(values)} columns, expected {len(header)} as in the "
            "header; fields are separated by one tab and must not hold tabs"
        )
    record = {k: " ".join(v.split()) for k, v in zip(header, values, strict=True)}
    record["lang"] = lang or record["lang"]
    for name in REQUIRED:
        if not record[name]:
            raise RecipeError(f"{where}: column {name} is empty")
    split, utt_id = record.get("split", ""), record["utt_id"]
    if split not in ("", *SPLITS):
        raise RecipeError(
            f"{where}: split {split!r}; expected {', '.join(SPLITS)} or nothing"
        )
    if "/" in utt_id or " " in utt_id:
        raise RecipeError(
            f"{where}: utterance id {utt_id!r} holds a space or a slash; files are "
            "named by it: use letters, digits, - and _"
        )
    # A file name may hold runs of spaces.
    file_name = values[header.index("path")].strip()
    times = record.get("start", ""), record.get("end", "")
    start, end = read_times(*times, where) if any(times) else (None, None)
    return Utterance(
        utt_id,
        path=os.path.abspath(path.parent / file_name),
        lang=language_code(record["lang"], where),
        speaker=record.get("speaker", "").replace(" ", "_"),
        where=where,
        start=start,
        end=end,
        **{name: record[name] for name in _AS_THEY_ARE if name in record},
    )
