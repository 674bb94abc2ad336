"""FLEURS as it is distributed: lists without header, audio as tar archives.

``<code>/<split>.tsv`` has seven columns: sentence id, file name, raw transcription,
transcription, its characters, samples at 16 kHz, gender.
``<code>/audio/<split>.tar.gz`` holds ``<split>/*.wav``. A sentence is read by several
speakers, who are not named.

The paper takes it as out-of-domain evaluation: nothing of it goes into pretraining.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.data.corpora.archive import (
    Archive,
    Ledger,
    Sets,
    extract_once,
    found_in,
    locate,
    read_rows,
)
from espnet2_lamer.data.sets import SPLITS, Utterance
from espnet2_lamer.errors import RecipeError

#: Folder of the archive to ISO 639-3.
CODES = {"en_us": "eng", "cmn_hans_cn": "cmn", "yue_hant_hk": "yue"}


def read(
    corpus: str, root: Path, langs: Sequence[str], ledger: Ledger, unpacked: Path
) -> Archive:
    """Read the languages that have a folder in :data:`CODES`.

    Audio that is not unpacked beside its archive is unpacked to ``unpacked``.

    Raises:
        RecipeError: Another archive, or a damaged tar file.
    """
    folder = locate(corpus, root, list(CODES), ["data"])
    return Archive(folder, _sets(folder, unpacked, langs, ledger))


def _sets(root: Path, unpacked: Path, langs: Sequence[str], ledger: Ledger) -> Sets:
    for code, lang in CODES.items():
        for split in SPLITS if lang in langs else ():
            name = f"eval/{split}_{lang}"
            rows = list(read_rows(root / code / f"{split}.tsv"))
            audio = _audio(root / code, split, unpacked / code)
            yield name, list(_read(rows, code, name, audio, ledger))


def _audio(folder: Path, split: str, unpacked: Path) -> Path:
    """Return the folder with ``*.wav`` of a split."""
    beside = folder / "audio" / split
    if beside.is_dir():
        return beside
    archive = folder / "audio" / f"{split}.tar.gz"
    if not archive.is_file():
        raise RecipeError(
            f"{archive}: file not found, and no folder {split} beside it; complete the "
            "download of FLEURS"
        )
    target = extract_once(archive, unpacked / split).absolute()
    inner = target / split
    if not inner.is_dir():
        raise RecipeError(
            f"{archive}: {found_in(target)}, expected {split}/*.wav; this is not the "
            f"{split} audio of FLEURS"
        )
    return inner


def _read(
    rows: list[tuple[str, list[str]]], code: str, name: str, audio: Path, ledger: Ledger
) -> Iterator[Utterance]:
    source = f"fleurs-{code}"
    for where, values in rows:
        _, file_name, _, text, _, samples, _ = values if len(values) == 7 else [""] * 7
        if not re.fullmatch(r"[\w-]+\.wav", file_name) or not samples.isdigit():
            ledger.leave_out(name, source, "broken_row", where)
            continue
        yield Utterance(
            utt_id=f"fleurs_{code}_{file_name.removesuffix('.wav')}",
            path=(audio / file_name).as_posix(),
            lang=CODES[code],
            text=text,
            source=source,
            seconds=int(samples) / SAMPLE_RATE,
        )
