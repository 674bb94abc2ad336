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

from espnet2_lamer.data.corpora.extract import extract_once
from espnet2_lamer.data.corpora.ledger import Ledger
from espnet2_lamer.data.corpora.lines import read_lines
from espnet2_lamer.data.corpora.prepare import found_in, write_corpus
from espnet2_lamer.data.sets import SPLITS, Utterance
from espnet2_lamer.errors import RecipeError

#: Folder of the archive to ISO 639-3.
CODES = {"en_us": "eng", "cmn_hans_cn": "cmn", "yue_hant_hk": "yue"}
_COLUMNS = 7
_RATE = 16000


def prepare(
    root: str | Path,
    output_dir: str | Path,
    langs: Sequence[str],
    max_missing: float = 1.0,
    nj: int = 1,
) -> dict:
    """Write ``eval/fleurs/{train,dev,test}_<lang>``.

    Audio that is not unpacked beside its archive is unpacked to
    ``<output_dir>/audio/fleurs``.

    Args:
        root: The folder with ``en_us`` and so on, or the one around it (``data``).
        output_dir: Where stage 1 writes.
        langs: ISO 639-3 codes; those without a folder in :data:`CODES` are skipped.
        max_missing: See :func:`~espnet2_lamer.data.corpora.prepare.write_corpus`.
        nj: Threads that look at files.

    Returns:
        The report, ``<output_dir>/fleurs.json``.

    Raises:
        RecipeError: Another archive, a damaged tar file, or too many files are missing.
    """
    root = Path(root)
    ledger = Ledger()
    for folder in (root, root / "data"):
        if any((folder / code).is_dir() for code in CODES):
            break
    else:
        raise RecipeError(
            f"{root}: {found_in(root)}, expected {', '.join(CODES)} of FLEURS; correct "
            "FLEURS in db.sh, or --root"
        )
    folder = folder.absolute()
    sets = _sets(folder, Path(output_dir) / "audio" / "fleurs", langs, ledger)
    return write_corpus("fleurs", folder, sets, ledger, output_dir, max_missing, nj)


def _sets(
    root: Path, audio_dir: Path, langs: Sequence[str], ledger: Ledger
) -> Iterator[tuple[str, list[Utterance]]]:
    for code, lang in CODES.items():
        if lang not in langs:
            continue
        for split in SPLITS:
            name = f"eval/{split}_{lang}"
            rows = list(read_lines(root / code / f"{split}.tsv"))
            audio = _audio(root / code, split, audio_dir / code)
            yield name, list(_read(rows, root / code, split, name, audio, ledger))


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
    rows: list[tuple[int, str | None]],
    folder: Path,
    split: str,
    name: str,
    audio: Path,
    ledger: Ledger,
) -> Iterator[Utterance]:
    source = f"fleurs-{folder.name}"
    for number, line in rows:
        if line == "":
            continue
        values = (line or "").split("\t")
        if (
            len(values) != _COLUMNS
            or not re.fullmatch(r"[\w-]+\.wav", values[1])
            or not values[5].isdigit()
        ):
            where = f"{folder / split}.tsv:{number}"
            ledger.leave_out(name, source, "broken_row", where)
            continue
        yield Utterance(
            utt_id=f"fleurs_{folder.name}_{values[1].removesuffix('.wav')}",
            path=(audio / values[1]).as_posix(),
            lang=CODES[folder.name],
            text=values[3],
            source=source,
            seconds=int(values[5]) / _RATE,
        )
