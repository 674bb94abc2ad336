"""Parts of recordings: Kaldi's ``segments``, and paths that say from when to when."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import iterate_table, read_table
from espnet2_lamer.fileio.hashing import sha256_value

#: Name of the table beside ``wav.scp``, whose lines are recordings then.
SEGMENTS = "segments"
# As W3C's media fragments say it. No audio file's name ends so.
_PART = re.compile(r"#t=(\d+(?:\.\d+)?)(?:,(\d+(?:\.\d+)?))?")
#: Where a part begins and ends in seconds; no end is that of the recording.
Times = tuple[float, float | None]


def part_of(path: str, start: float, end: float | None = None) -> str:
    """Return the path of a part of a recording, such as ``a.wav#t=1.5,4.25``.

    Everything of stage 2 that takes a file takes this, too. From 0 to the end it is the
    file itself.
    """
    if not start and end is None:
        return path
    last = "" if end is None else f",{_seconds(end)}"
    return f"{path}#t={_seconds(start)}{last}"


def recording_and_times(path: str) -> tuple[str, Times | None]:
    """Take such a path apart; None for a whole file."""
    place = path.rfind("#t=")
    found = _PART.fullmatch(path, place) if place >= 0 else None
    if not found:
        return path, None
    end = None if found[2] is None else float(found[2])
    return path[:place], (float(found[1]), end)


def _seconds(value: float) -> str:
    text = f"{value:.6f}".rstrip("0")
    return text + "0" if text.endswith(".") else text


def audio_tables(wavs: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return ``wav.scp`` of utterances; if some are parts, by recording, ``segments``.

    Recordings are called by their files' names, or their only utterance's if it is the
    whole file. An end of -1 is the recording's.
    """
    places = {utt: recording_and_times(path) for utt, path in wavs.items()}
    if all(times is None for _, times in places.values()):
        return {"wav.scp": dict(wavs)}
    names: dict[str, str] = {}  # by path
    paths: dict[str, str] = {}
    segments = {}
    for utt, (path, times) in places.items():
        if path not in names:
            name = utt if times is None else "_".join(Path(path).stem.split())
            if name in paths:  # in another folder
                name = f"{name}-{sha256_value(path)[:8]}"
            names[path], paths[name] = name, path
        start, end = times or (0.0, None)
        last = "-1" if end is None else _seconds(end)
        segments[utt] = f"{names[path]} {_seconds(start)} {last}"
    return {"wav.scp": paths, SEGMENTS: segments}


def read_segments(path: str | Path) -> dict[str, tuple[str, Times]]:
    """Read Kaldi's ``segments``: utterance to recording, start and end in seconds.

    Raises:
        RecipeError: A line is not ``utterance recording start end``, a time is no time,
            or an utterance occurs twice.
    """
    found: dict[str, tuple[str, Times]] = {}
    for number, (utt, value) in enumerate(iterate_table(path), 1):
        words, where = value.split(), f"{path}:{number}"
        if len(words) != 3:
            raise RecipeError(
                f"{where}: found {1 + len(words)} words, expected 4: utterance, "
                "recording, start and end in seconds"
            )
        if utt in found:
            raise RecipeError(f"{where}: utterance id {utt!r} occurs twice")
        found[utt] = words[0], read_times(words[1], words[2], where)
    return found


def read_times(start: str, end: str, where: str) -> Times:
    """Check two times as they stand in a file; an end of -1 or nothing is the file's.

    Raises:
        RecipeError: They are no numbers, or the end is not after the start.
    """
    try:
        first, last = float(start or 0), float(end or -1)
    except ValueError:
        first, last = math.nan, math.nan
    if last == -1:
        last = math.inf
    if not 0 <= first < last:
        raise RecipeError(
            f"{where}: start {start!r}, end {end!r}; expected seconds, the end after "
            "the start (-1: the end of the recording)"
        )
    return first, None if last == math.inf else last


def read_wavs(
    directory: str | Path, made_by: str = "", wav_scp: str = "wav.scp"
) -> dict[str, str]:
    """Return the audio of each utterance of a data directory.

    Where there is a file ``segments`` these are parts of recordings (:func:`part_of`).

    Raises:
        RecipeError: A table is missing or cannot be read, or ``segments`` names a
            recording that ``wav.scp`` does not have.
    """
    directory = Path(directory)
    wavs = read_table(directory / wav_scp, made_by)
    path = directory / SEGMENTS
    if not path.is_file():
        return wavs
    parts = read_segments(path)
    unknown = [utt for utt, (recording, _) in parts.items() if recording not in wavs]
    if unknown:
        raise RecipeError(
            f"{path}: {len(unknown)} of {len(parts)} utterances are of recordings that "
            f"{wav_scp} does not have, first {unknown[0]!r} of "
            f"{parts[unknown[0]][0]!r}"
        )
    return {utt: part_of(wavs[name], *times) for utt, (name, times) in parts.items()}


def by_recording(utts: Iterable[tuple[str, str]]) -> dict[str, dict[str, Times]]:
    """Group utterances that are parts: recording to utterance to times."""
    found: dict[str, dict[str, Times]] = {}
    for utt, path in utts:
        recording, times = recording_and_times(path)
        if times is not None:
            found.setdefault(recording, {})[utt] = times
    return found
