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

from espnet2_lamer.data.corpora.ledger import Ledger
from espnet2_lamer.data.corpora.lines import read_lines
from espnet2_lamer.data.corpora.prepare import found_in, write_corpus
from espnet2_lamer.data.sets import SPLITS, Utterance
from espnet2_lamer.errors import RecipeError

#: Folder of the archive to ISO 639-3.
LOCALES = {"en": "eng", "zh-CN": "cmn", "zh-HK": "yue", "yue": "yue"}
#: The release that mHuBERT-147 and the paper used.
RELEASE = "11.0"
_REQUIRED = ("client_id", "path", "sentence")
_CLIP = re.compile(r"[\w.-]+")
_LOCALE = re.compile(r"[a-z]{2,3}(-[A-Za-z]+)*")


def prepare(
    root: str | Path,
    output_dir: str | Path,
    langs: Sequence[str],
    max_missing: float = 1.0,
    nj: int = 1,
) -> dict:
    """Write ``pretrain/commonvoice/train_<lang>`` and ``eval/commonvoice/*``.

    Args:
        root: ``cv-corpus-11.0-2022-09-21``, or the folder around it.
        output_dir: Where stage 1 writes.
        langs: ISO 639-3 codes; those without a locale in :data:`LOCALES` are skipped.
        max_missing: See :func:`~espnet2_lamer.data.corpora.prepare.write_corpus`.
        nj: Threads that look at files.

    Returns:
        The report, ``<output_dir>/commonvoice.json``.

    Raises:
        RecipeError: A locale or a list is missing, a list has other columns or holds
            another locale than its folder, or too many clips are missing.
    """
    release = _find_release(Path(root))
    version = re.match(r"cv-corpus-(\d+\.\d+)", release.name)
    if version and version[1] != RELEASE:
        logging.warning(
            "%s is release %s; mHuBERT-147 and the paper used %s, whose lists differ",
            release,
            version[1],
            RELEASE,
        )
    ledger = Ledger()
    return write_corpus(
        "commonvoice",
        release,
        _sets(release, langs, ledger),
        ledger,
        output_dir,
        max_missing,
        nj,
        {"release": version[1] if version else None},
    )


def _find_release(root: Path) -> Path:
    for folder in (root, *sorted(root.glob("cv-corpus-*"))):
        if any((folder / locale / "validated.tsv").is_file() for locale in LOCALES):
            return folder.absolute()
    raise RecipeError(
        f"{root}: {found_in(root)}, expected folders {', '.join(LOCALES)} with "
        "validated.tsv and clips/, as in cv-corpus-11.0-2022-09-21; correct "
        "COMMONVOICE in db.sh, or --root"
    )


def _sets(
    release: Path, langs: Sequence[str], ledger: Ledger
) -> Iterator[tuple[str, list[Utterance]]]:
    for lang in langs:
        folders = [release / name for name, code in LOCALES.items() if code == lang]
        if not folders:
            continue
        for folder in folders:
            if not folder.is_dir():
                raise RecipeError(
                    f"{folder}: {found_in(folder)}; language {lang} is made of "
                    f"{', '.join(f.name for f in folders)} of CommonVoice"
                )
        durations = {folder: _durations(folder) for folder in folders}
        held_out: set[str] = set()
        for split in reversed(SPLITS):
            name = f"eval/{split}_{lang}"
            utterances = []
            for folder in folders:
                rows = _read(folder, split, name, ledger, durations[folder])
                utterances += rows
            if split != "train":
                held_out.update(u.utt_id for u in utterances)
            yield name, utterances
        name = f"pretrain/train_{lang}"
        utterances = []
        for folder in folders:
            for row in _read(folder, "validated", name, ledger, durations[folder]):
                if row.utt_id in held_out:
                    ledger.leave_out(name, row.source, "in_dev_or_test")
                else:
                    utterances.append(row)
        yield name, utterances


def _read(
    folder: Path, table: str, name: str, ledger: Ledger, durations: dict[str, float]
) -> Iterator[Utterance]:
    """Yield the rows of one list; nothing is quoted in these files."""
    path = folder / f"{table}.tsv"
    source = f"commonvoice-{folder.name}"
    lines = read_lines(path)
    _, first = next(lines, (1, None))
    header = (first or "").split("\t")
    missing = [column for column in _REQUIRED if column not in header]
    if missing:
        raise RecipeError(
            f"{path}:1: no column {', '.join(missing)}; found {', '.join(header)}; "
            "expected the list of a CommonVoice release"
        )
    columns = {column: index for index, column in enumerate(header)}
    clips = (folder / "clips").as_posix()
    for number, line in lines:
        if line == "":
            continue
        where = f"{path}:{number}"
        values = _split(line, header)
        clip = values[columns["path"]].removesuffix(".mp3") if values else ""
        locale = values[columns["locale"]] if values and "locale" in columns else ""
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
            path=f"{clips}/{clip}.mp3",
            lang=LOCALES[folder.name],
            text=values[columns["sentence"]],
            speaker=_speaker(values[columns["client_id"]]) or utt_id,
            source=source,
            seconds=durations.get(clip),
        )


def _split(line: str | None, header: list[str]) -> list[str] | None:
    """Split a row; surplus tabs belong to the sentence, the free text among them."""
    if line is None:
        return None
    values = line.split("\t")
    surplus = len(values) - len(header)
    if surplus < 0:
        return None
    start = header.index("sentence")
    sentence = "\t".join(values[start : start + surplus + 1])
    return [*values[:start], sentence, *values[start + surplus + 1 :]]


def _speaker(client_id: str) -> str:
    """Shorten a client id, 128 hexadecimal digits, to 16 that stay the same."""
    if not client_id:
        return ""
    if not re.fullmatch(r"[0-9a-f]{16,}", client_id):
        client_id = hashlib.sha256(client_id.encode()).hexdigest()
    return f"commonvoice_{client_id[:16]}"


def _durations(folder: Path) -> dict[str, float]:
    """Read ``clip_durations.tsv``, which later releases have: clip, milliseconds."""
    path = folder / "clip_durations.tsv"
    durations: dict[str, float] = {}
    if not path.is_file():
        return durations
    for _, line in read_lines(path):
        clip, _, milliseconds = (line or "").partition("\t")
        if milliseconds.isdigit():
            durations[clip.removesuffix(".mp3")] = int(milliseconds) / 1000
    return durations
