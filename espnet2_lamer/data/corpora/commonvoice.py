"""CommonVoice 11.0 as it is distributed: TSV files and MP3 clips per locale.

Pretraining takes what mHuBERT-147 took: ``validated.tsv`` without the clips of
``dev.tsv`` and ``test.tsv``. Evaluation takes the corpus' own three lists. zh-HK and
yue are both Cantonese and stay apart as sources; zh-TW is left out, as in the paper.
"""

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from espnet2_lamer.data.corpora.archive import (
    Archive,
    Ledger,
    Sets,
    found_in,
    locate,
    read_rows,
)
from espnet2_lamer.data.sets import SPLITS, Utterance
from espnet2_lamer.errors import RecipeError

#: Folder of the archive to ISO 639-3.
LOCALES = {"en": "eng", "zh-CN": "cmn", "zh-HK": "yue", "yue": "yue"}
#: The release that mHuBERT-147 and the paper used.
RELEASE = "11.0"
_REQUIRED = ("client_id", "path", "sentence")
_LONGEST = 600_000  # ms
_CLIP = re.compile(r"[\w.-]+")
_LOCALE = re.compile(r"[a-z]{2,3}(-[A-Za-z]+)*")


def read(corpus: str, root: Path, langs: Sequence[str], ledger: Ledger) -> Archive:
    """Read the languages that have a locale in :data:`LOCALES`.

    Raises:
        RecipeError: A locale or a list is missing, a list has other columns or holds
            another locale than its folder.
    """
    lists = [f"{locale}/validated.tsv" for locale in LOCALES]
    release = locate(corpus, root, lists, ["cv-corpus-*"])
    version = re.match(r"cv-corpus-(\d+\.\d+)", release.name)
    if version and version[1] != RELEASE:
        logging.warning(
            "%s is release %s; mHuBERT-147 and the paper used %s, whose lists differ",
            release,
            version[1],
            RELEASE,
        )
    details = {"release": version[1] if version else None}
    return Archive(release, _sets(release, langs, ledger), details)


def _sets(release: Path, langs: Sequence[str], ledger: Ledger) -> Sets:
    for lang in langs:
        folders = [release / name for name, code in LOCALES.items() if code == lang]
        for folder in folders:
            if not folder.is_dir():
                raise RecipeError(
                    f"{folder}: {found_in(folder)}; language {lang} is made of "
                    f"{', '.join(f.name for f in folders)} of CommonVoice"
                )
        durations = {folder: _durations(folder) for folder in folders}
        held_out: set[str] = set()
        names = {split: f"eval/{split}_{lang}" for split in reversed(SPLITS)}
        for table, name in (names | {"validated": f"pretrain/train_{lang}"}).items():
            rows: list[Utterance] = []
            for folder in folders:
                rows += _read(folder, table, name, ledger, durations[folder])
            if table == "validated":
                for row in rows:
                    if row.utt_id in held_out:
                        ledger.leave_out(name, row.source, "in_dev_or_test")
                rows = [row for row in rows if row.utt_id not in held_out]
            elif table != "train":
                held_out.update(row.utt_id for row in rows)
            if folders:
                yield name, rows


def _read(
    folder: Path, table: str, name: str, ledger: Ledger, durations: dict[str, float]
) -> Iterator[Utterance]:
    """Yield the rows of one list; only later releases quote, and only sentences."""
    source = f"commonvoice-{folder.name}"
    rows = read_rows(folder / f"{table}.tsv")
    where, header = next(rows, (f"{folder / table}.tsv:1", []))
    missing = [column for column in _REQUIRED if column not in header]
    if missing:
        raise RecipeError(
            f"{where}: no column {', '.join(missing)}; found {', '.join(header)}; "
            "expected the list of a CommonVoice release"
        )
    for where, values in rows:
        row = _row(values, header)
        clip = row.get("path", "").removesuffix(".mp3")
        locale = row.get("locale", "")
        if locale != folder.name and _LOCALE.fullmatch(locale):
            raise RecipeError(
                f"{where}: locale {locale!r}, expected {folder.name!r} as the folder "
                "says; put every locale's archive into its own folder"
            )
        if not _CLIP.fullmatch(clip):
            ledger.leave_out(name, source, "broken_row", where)
            continue
        utt_id = f"commonvoice_{clip}"
        yield Utterance(
            utt_id=utt_id,
            path=f"{folder.as_posix()}/clips/{clip}.mp3",
            lang=LOCALES[folder.name],
            text=_unquoted(row["sentence"], "sentence_id" in header),
            speaker=_speaker(row["client_id"]) or utt_id,
            source=source,
            seconds=durations.get(clip),
        )


def _row(values: list[str], header: list[str]) -> dict[str, str]:
    """Name the values of a row; empty where there are too few.

    Surplus tabs belong to the sentence, the free text among them.
    """
    surplus = len(values) - len(header)
    if surplus < 0:
        return {}
    start = header.index("sentence")
    end = start + surplus + 1
    values = [*values[:start], "\t".join(values[start:end]), *values[end:]]
    return dict(zip(header, values, strict=True))


def _unquoted(sentence: str, csv: bool) -> str:
    """Take off quotes that are not the sentence's; ``csv``: writers double others."""
    inner = sentence[1:-1].replace('""', "")
    if len(sentence) > 1 and sentence[0] == sentence[-1] == '"' and '"' not in inner:
        return sentence[1:-1].replace('""', '"')
    return sentence.replace('""', '"') if csv else sentence


def _speaker(client_id: str) -> str:
    """Shorten a client id, 128 hexadecimal digits, to 16 that stay the same."""
    if not client_id:
        return ""
    if not re.fullmatch(r"[0-9a-f]{16,}", client_id):
        client_id = hashlib.sha256(client_id.encode()).hexdigest()
    return f"commonvoice_{client_id[:16]}"


def _durations(folder: Path) -> dict[str, float]:
    """Read ``clip_durations.tsv``, which later releases have: clip, milliseconds.

    They are for the report only; what no clip can have is left out.
    """
    path = folder / "clip_durations.tsv"
    rows = read_rows(path) if path.is_file() else ()
    return {
        values[0].removesuffix(".mp3"): int(values[1]) / 1000
        for _, values in rows
        if len(values) == 2 and values[1].isdigit() and 0 < int(values[1]) < _LONGEST
    }
