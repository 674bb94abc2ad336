"""THCHS-30, AISHELL-1 and AISHELL-3: their training sets, for pretraining.

mHuBERT-147 states that it used only the training sets of ASR and TTS corpora; its
scripts for the two AISHELL corpora are public, that for THCHS-30 is not.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from espnet2_lamer.data.audio import listed
from espnet2_lamer.data.corpora.archive import (
    Archive,
    Ledger,
    found_in,
    locate,
    read_rows,
    visible,
)
from espnet2_lamer.data.sets import Utterance
from espnet2_lamer.errors import RecipeError

_SET = "pretrain/train_cmn"
_ENDING = ".wav.trn"
_TRANSCRIPT = "transcript/aishell_transcript_v0.8.txt"
_CONTENT = "train/content.txt"
_SYLLABLE = re.compile(r"[a-zü:]+[0-6]")

# Name, audio file, speaker and transcript of an utterance.
_Rows = Iterator[tuple[str, Path, str, str]]


class _Corpus(NamedTuple):
    marker: str  # what its archive has
    folders: tuple[str, ...]  # names of the archive's folder
    complete: int  # utterances of the training set in the complete archive
    rows: Callable[[Path, Ledger], _Rows]


def read(corpus: str, root: Path, langs: Sequence[str], ledger: Ledger) -> Archive:
    """Read the training set of one of :data:`MANDARIN`.

    Raises:
        RecipeError: Another archive, or speakers' archives that are not unpacked.
    """
    known = MANDARIN[corpus]
    folder = locate(corpus, root, [known.marker], known.folders)
    utterances = (
        Utterance(
            utt_id=f"{corpus}_{name}",
            path=path.as_posix(),
            lang="cmn",
            text=text,
            speaker=f"{corpus}_{speaker}",
            source=corpus,
        )
        for name, path, speaker, text in known.rows(folder, ledger)
    )
    sets = ((_SET, list(utterances)) for lang in langs if lang == "cmn")
    return Archive(folder, sets, complete={_SET: known.complete})


def _thchs30(folder: Path, ledger: Ledger) -> _Rows:
    """THCHS-30 (OpenSLR 18): one folder of audio, three of links or pointers into it.

    ``data/`` holds ``A11_0.wav`` and ``A11_0.wav.trn`` with three lines: words, pinyin,
    phones. ``train/``, ``dev/`` and ``test/`` hold the same names: links, copies, or,
    for the transcripts, one line ``../data/A11_0.wav.trn``.
    """
    train = folder / "train"
    names = {p.name.removesuffix(_ENDING) for p in visible(train, f"*{_ENDING}")}
    if not names:
        raise RecipeError(
            f"{train}: {found_in(train)}, expected *.wav and *.wav.trn of THCHS-30"
        )
    for name in sorted(names | {path.stem for path in visible(train, "*.wav")}):
        audio, beside = (folder / part / f"{name}.wav" for part in ("train", "data"))
        # A link that did not survive the copy, or became a file with the path in it.
        path = audio if _is_wav(audio) or not beside.is_file() else beside
        yield name, path, name.partition("_")[0], _words(folder, name)


def _is_wav(path: Path) -> bool:
    try:
        with open(path, "rb") as handle:
            return handle.read(4) == b"RIFF"
    except OSError:
        return False


def _words(folder: Path, name: str) -> str:
    """Return the first line of the transcript, following a pointer to ``data/``."""
    for part in ("train", "data"):
        path = folder / part / f"{name}{_ENDING}"
        if path.is_file():
            where, words = next(read_rows(path), ("", []))
            first = "\t".join(words) if where.endswith(":1") else ""
            if first and not first.strip().endswith(_ENDING):
                return first
    return ""


def _aishell1(folder: Path, ledger: Ledger) -> _Rows:
    """AISHELL-1 (OpenSLR 33): ``wav/<split>/<speaker>/*.wav``, one transcript file.

    A few utterances have no transcript; they are speech all the same and stay.
    """
    wav = folder / "wav"
    speakers = [p for p in visible(wav / "train", "*") if p.is_dir()]
    unpacked = {path.name for path in visible(wav, "*/*")}
    packed = [p for p in visible(wav, "*.tar.gz") if p.name[:-7] not in unpacked]
    if packed:
        names = listed([path.name for path in packed])
        raise RecipeError(
            f"{wav}: {len(packed)} speakers are still packed, beside {len(unpacked)} "
            f"that are not; unpack them: cd {wav} && for f in *.tar.gz; do "
            f'tar xzf "$f"; done\n{names}'
        )
    if not speakers:
        text = f"{wav}: {found_in(wav)}, expected train/<speaker>/*.wav"
        raise RecipeError(text)
    texts = {}
    # The transcripts are of all splits; an utterance is named after its speaker:
    # BAC009S0002W0122 is one of S0002.
    transcribed: dict[str, set[str]] = {}
    for _, values in read_rows(folder / _TRANSCRIPT):
        name, _, text = "\t".join(values).strip().partition(" ")
        texts[name] = text
        if match := re.search(r"S\d{4}", name):
            transcribed.setdefault(match[0], set()).add(name)
    for speaker in speakers:
        names = {path.stem for path in visible(speaker, "*.wav")}
        for name in sorted(names | transcribed.get(speaker.name, set())):
            yield name, speaker / f"{name}.wav", speaker.name, texts.get(name, "")


def _aishell3(folder: Path, ledger: Ledger) -> _Rows:
    """AISHELL-3 (OpenSLR 93): 44.1 kHz audio and ``content.txt`` per split.

    A line of ``content.txt`` is ``SSB00050001.wav``, a tab, and hanzi each followed by
    its pinyin. ``label_train-set.txt`` adds prosody marks and is not needed.
    """
    texts = {}
    for _, values in read_rows(folder / _CONTENT):
        if len(values) < 2 or not re.fullmatch(r"\w+\.wav", values[0]):
            # The audio is used without it.
            ledger.remark(_SET, "aishell3", "unreadable_transcript")
            continue
        words = " ".join(values[1:]).split()
        hanzi = (word for word in words if not _SYLLABLE.fullmatch(word))
        texts[values[0].removesuffix(".wav")] = " ".join(hanzi)
    wav = folder / "train" / "wav"
    names = {path.stem: path for path in visible(wav, "*/*.wav")}
    # SSB00050001 is utterance 0001 of speaker SSB0005.
    names |= {n: wav / n[:7] / f"{n}.wav" for n in texts if n not in names}
    for name in sorted(names):
        yield name, names[name], name[:7], texts.get(name, "")


MANDARIN = {
    "thchs30": _Corpus("train", ("data_thchs30",), 10_000, _thchs30),
    # Of the 120,418, 120,098 have a transcript.
    "aishell1": _Corpus(_TRANSCRIPT, ("data_aishell",), 120_418, _aishell1),
    "aishell3": _Corpus(_CONTENT, ("data_aishell3", "AISHELL-3"), 63_262, _aishell3),
}
