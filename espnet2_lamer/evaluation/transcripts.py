"""Transcripts of a recording as plain text, CTM, JSON and subtitles (SRT)."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from espnet2_lamer.evaluation.recogniser import Transcript
from espnet2_lamer.evaluation.timestamps import TimedWord
from espnet2_lamer.fileio.atomic import write_text

# A subtitle is two lines of 42 characters, and is read in seven seconds.
_CUE_SECONDS, _CUE_LETTERS = 7.0, 84
#: What :func:`write_transcript` writes.
FORMATS = ("txt", "ctm", "json", "srt")


def write_transcript(
    name: str, pieces: Sequence[Transcript], directory: Path
) -> list[Path]:
    """Write ``<name>.txt``, ``.ctm``, ``.json`` and ``.srt``.

    ``name`` is the recording's, also in the CTM file: ``name 1 start duration word
    confidence``, seconds of the recording.
    """
    words = [word for piece in pieces for word in piece.words]
    texts = {
        "txt": "".join(f"{piece.text}\n" for piece in pieces if piece.text),
        "ctm": "".join(ctm_lines(name, words)),
        "json": _as_json(name, pieces),
        "srt": "".join(_subtitles(pieces)),
    }
    paths = [directory / f"{name}.{kind}" for kind in FORMATS]
    for path, text in zip(paths, texts.values(), strict=True):
        write_text(path, text)
    return paths


def ctm_lines(name: str, words: Sequence[TimedWord]) -> Iterator[str]:
    """Yield a CTM line per word."""
    recording = "_".join(name.split()) or "recording"
    for word in words:
        times = f"{word.start:.2f} {word.end - word.start:.2f}"
        yield f"{recording} 1 {times} {word.text} {word.confidence:.2f}\n"


def _as_json(name: str, pieces: Sequence[Transcript]) -> str:
    segments = [
        {
            "start": round(piece.start, 3),
            "end": round(piece.end, 3),
            "text": piece.text,
            "words": [*map(_fields, piece.words)],
            "tokens": [*map(_fields, piece.tokens)],
        }
        for piece in pieces
    ]
    text = " ".join(piece.text for piece in pieces if piece.text)
    found = {"recording": name, "text": text, "segments": segments}
    return json.dumps(found, ensure_ascii=False, indent=1) + "\n"


def _fields(word: TimedWord) -> dict[str, str | float]:
    return {
        "text": word.text,
        "start": round(word.start, 3),
        "end": round(word.end, 3),
        "confidence": round(word.confidence, 3),
    }


def _subtitles(pieces: Sequence[Transcript]) -> Iterator[str]:
    number = 0
    for piece in pieces:
        for cue in _cues(piece.words):
            number += 1
            times = f"{_clock(cue[0].start)} --> {_clock(cue[-1].end)}"
            yield f"{number}\n{times}\n{_spaced(cue)}\n\n"


def _cues(words: Sequence[TimedWord]) -> Iterator[list[TimedWord]]:
    cue: list[TimedWord] = []
    for word in words:
        long = cue and (
            word.end - cue[0].start > _CUE_SECONDS
            or len(_spaced([*cue, word])) > _CUE_LETTERS
        )
        if long:
            yield cue
            cue = []
        cue.append(word)
    if cue:
        yield cue


def _spaced(words: Sequence[TimedWord]) -> str:
    """Join words; no space between characters of scripts that have none."""
    text = ""
    for word in words:
        both = text and text[-1].isascii() or word.text[:1].isascii()
        text += f" {word.text}" if text and both else word.text
    return text


def _clock(seconds: float) -> str:
    millis = round(seconds * 1000)
    hours, rest = divmod(millis, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02},{rest % 1000:03}"
