"""AISHELL-3 (OpenSLR 93): 44.1 kHz audio and ``content.txt`` per split.

A line of ``content.txt`` is ``SSB00050001.wav``, a tab, and hanzi each followed by its
pinyin. ``label_train-set.txt`` adds prosody marks and is not needed.

Pretraining takes ``train``: mHuBERT-147's script reads one folder of audio into a
training list, and only training sets of TTS corpora were used.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from espnet2_lamer.data.corpora.ledger import Ledger
from espnet2_lamer.data.corpora.lines import read_lines
from espnet2_lamer.data.corpora.prepare import locate, write_corpus
from espnet2_lamer.data.sets import Utterance

CONTENT = "train/content.txt"
#: Files of ``train/wav`` in the complete archive.
EXPECTED = 63_262
_SET = "pretrain/train_cmn"
_SOURCE = "aishell3"
_SYLLABLE = re.compile(r"[a-zü:]+[0-6]")


def prepare(
    root: str | Path,
    output_dir: str | Path,
    langs: Sequence[str],
    max_missing: float = 1.0,
    nj: int = 1,
) -> dict:
    """Write ``pretrain/aishell3/train_cmn``.

    Args:
        root: The folder with ``train/`` and ``test/``, or the one around it.
        output_dir: Where stage 1 writes.
        langs: ISO 639-3 codes; without ``cmn`` nothing is written.
        max_missing: See :func:`~espnet2_lamer.data.corpora.prepare.write_corpus`.
        nj: Threads that look at files.

    Returns:
        The report, ``<output_dir>/aishell3.json``.

    Raises:
        RecipeError: Another archive, or too many files are missing.
    """
    folder = locate("aishell3", root, CONTENT, ("data_aishell3", "AISHELL-3"))
    ledger = Ledger()
    return write_corpus(
        "aishell3",
        folder,
        _sets(folder, langs, ledger),
        ledger,
        output_dir,
        max_missing,
        nj,
        expected={_SET: EXPECTED},
    )


def _sets(
    folder: Path, langs: Sequence[str], ledger: Ledger
) -> Iterator[tuple[str, list[Utterance]]]:
    if "cmn" not in langs:
        return
    wav = folder / "train" / "wav"
    texts = _transcripts(folder / CONTENT, ledger)
    names = {path.stem: path for path in wav.glob("*/*.wav")}
    # SSB00050001 is utterance 0001 of speaker SSB0005.
    names |= {n: wav / n[:7] / f"{n}.wav" for n in texts if n not in names}
    yield (
        _SET,
        [
            Utterance(
                utt_id=f"aishell3_{name}",
                path=names[name].as_posix(),
                lang="cmn",
                text=texts.get(name, ""),
                speaker=f"aishell3_{name[:7]}",
                source=_SOURCE,
            )
            for name in sorted(names)
        ],
    )


def _transcripts(path: Path, ledger: Ledger) -> dict[str, str]:
    texts = {}
    for _, line in read_lines(path):
        if line == "":
            continue
        name, tab, content = (line or "").partition("\t")
        if not tab or not re.fullmatch(r"\w+\.wav", name):
            # The audio is used without it.
            ledger.remark(_SET, _SOURCE, "unreadable_transcript")
            continue
        hanzi = (w for w in content.split() if not _SYLLABLE.fullmatch(w))
        texts[name.removesuffix(".wav")] = " ".join(hanzi)
    return texts
