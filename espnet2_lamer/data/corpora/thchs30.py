"""THCHS-30 (OpenSLR 18): one folder of audio, three of links or pointers into it.

``data/`` holds ``A11_0.wav`` and ``A11_0.wav.trn`` with three lines: words, pinyin,
phones. ``train/``, ``dev/`` and ``test/`` hold the same names: links, copies, or, for
the transcripts, one line ``../data/A11_0.wav.trn``.

Pretraining takes ``train``. mHuBERT-147 states that it used only the training sets of
ASR and TTS corpora; no script of its THCHS-30 preparation is public.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from espnet2_lamer.data.corpora.ledger import Ledger
from espnet2_lamer.data.corpora.lines import read_lines
from espnet2_lamer.data.corpora.prepare import found_in, locate, write_corpus
from espnet2_lamer.data.sets import Utterance
from espnet2_lamer.errors import RecipeError

#: Utterances of ``train`` in the complete archive.
EXPECTED = 10_000
_SET = "pretrain/train_cmn"
_SOURCE = "thchs30"
_ENDING = ".wav.trn"


def prepare(
    root: str | Path,
    output_dir: str | Path,
    langs: Sequence[str],
    max_missing: float = 1.0,
    nj: int = 1,
) -> dict:
    """Write ``pretrain/thchs30/train_cmn``.

    Args:
        root: ``data_thchs30``, or the folder around it.
        output_dir: Where stage 1 writes.
        langs: ISO 639-3 codes; without ``cmn`` nothing is written.
        max_missing: See :func:`~espnet2_lamer.data.corpora.prepare.write_corpus`.
        nj: Threads that look at files.

    Returns:
        The report, ``<output_dir>/thchs30.json``.

    Raises:
        RecipeError: Another archive, or too many files are missing.
    """
    folder = locate("thchs30", root, "train", ("data_thchs30",))
    ledger = Ledger()
    return write_corpus(
        "thchs30",
        folder,
        _sets(folder, langs),
        ledger,
        output_dir,
        max_missing,
        nj,
        expected={_SET: EXPECTED},
    )


def _sets(folder: Path, langs: Sequence[str]) -> Iterator[tuple[str, list[Utterance]]]:
    if "cmn" not in langs:
        return
    train = folder / "train"
    names = {p.name.removesuffix(_ENDING) for p in train.glob(f"*{_ENDING}")}
    if not names:
        raise RecipeError(
            f"{train}: {found_in(train)}, expected *.wav and *.wav.trn of THCHS-30"
        )
    names |= {path.stem for path in train.glob("*.wav")}
    yield _SET, [_utterance(folder, name) for name in sorted(names)]


def _utterance(folder: Path, name: str) -> Utterance:
    audio = folder / "train" / f"{name}.wav"
    # A link that did not survive the copy: the file it pointed to.
    beside = folder / "data" / audio.name
    return Utterance(
        utt_id=f"thchs30_{name}",
        path=(audio if audio.is_file() or not beside.is_file() else beside).as_posix(),
        lang="cmn",
        text=_words(folder, name),
        speaker=f"thchs30_{name.partition('_')[0]}",
        source=_SOURCE,
    )


def _words(folder: Path, name: str) -> str:
    """Return the first line of the transcript, following a pointer to ``data/``."""
    for path in (
        folder / "train" / f"{name}{_ENDING}",
        folder / "data" / f"{name}{_ENDING}",
    ):
        if path.is_file():
            _, line = next(read_lines(path), (1, None))
            if line is not None and not line.strip().endswith(_ENDING):
                return line
    return ""
