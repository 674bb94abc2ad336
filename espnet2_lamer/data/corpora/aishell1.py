"""AISHELL-1 (OpenSLR 33): ``wav/<split>/<speaker>/*.wav`` and one transcript file.

Pretraining takes ``train``, as mHuBERT-147's script does. A few utterances have no
transcript; they are speech all the same and stay.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from espnet2_lamer.data.corpora.ledger import Ledger
from espnet2_lamer.data.corpora.lines import read_lines
from espnet2_lamer.data.corpora.prepare import found_in, locate, write_corpus
from espnet2_lamer.data.sets import Utterance
from espnet2_lamer.errors import RecipeError

TRANSCRIPT = "transcript/aishell_transcript_v0.8.txt"
#: Files of ``wav/train`` in the complete archive; 120,098 of them have a transcript.
EXPECTED = 120_418
_SET = "pretrain/train_cmn"
_SOURCE = "aishell1"


def prepare(
    root: str | Path,
    output_dir: str | Path,
    langs: Sequence[str],
    max_missing: float = 1.0,
    nj: int = 1,
) -> dict:
    """Write ``pretrain/aishell1/train_cmn``.

    Args:
        root: ``data_aishell``, or the folder around it.
        output_dir: Where stage 1 writes.
        langs: ISO 639-3 codes; without ``cmn`` nothing is written.
        max_missing: See :func:`~espnet2_lamer.data.corpora.prepare.write_corpus`.
        nj: Threads that look at files.

    Returns:
        The report, ``<output_dir>/aishell1.json``.

    Raises:
        RecipeError: Another archive, speakers' archives that are not unpacked, or too
            many files are missing.
    """
    folder = locate("aishell1", root, TRANSCRIPT, ("data_aishell",))
    ledger = Ledger()
    return write_corpus(
        "aishell1",
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
    wav = folder / "wav"
    speakers = [p for p in sorted((wav / "train").glob("*")) if p.is_dir()]
    if not speakers:
        packed = sorted(wav.glob("*.tar.gz"))
        raise RecipeError(
            f"{wav}: found {len(packed)} packed speakers such as {packed[0].name}, "
            f"expected train/, dev/ and test/; unpack them: cd {wav} && for f in "
            '*.tar.gz; do tar xzf "$f"; done'
            if packed
            else f"{wav}: {found_in(wav)}, expected train/<speaker>/*.wav"
        )
    texts = _transcripts(folder / TRANSCRIPT)
    # The transcripts are of all splits; an utterance is named after its speaker:
    # BAC009S0002W0122 is one of S0002.
    transcribed: dict[str, set[str]] = {}
    for name in texts:
        if match := re.search(r"S\d{4}", name):
            transcribed.setdefault(match[0], set()).add(name)
    utterances = []
    for speaker in speakers:
        names = {path.stem for path in speaker.glob("*.wav")}
        for name in sorted(names | transcribed.get(speaker.name, set())):
            utterances.append(
                Utterance(
                    utt_id=f"aishell1_{name}",
                    path=(speaker / f"{name}.wav").as_posix(),
                    lang="cmn",
                    text=texts.get(name, ""),
                    speaker=f"aishell1_{speaker.name}",
                    source=_SOURCE,
                )
            )
    yield _SET, utterances


def _transcripts(path: Path) -> dict[str, str]:
    texts = {}
    for _, line in read_lines(path):
        name, _, text = (line or "").strip().partition(" ")
        if name:
            texts[name] = text
    return texts
