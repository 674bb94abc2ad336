"""Long recordings become segments: cut at pauses, the longest ones first."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from espnet2_lamer.data.audio_decoding import Unusable, open_audio
from espnet2_lamer.data.recordings import speech_stream
from espnet2_lamer.data.voice_activity import FRAME_SECONDS, Activity, listen
from espnet2_lamer.errors import RecipeError

# Raised when recordings are cut in another way: those cut before are cut anew.
VERSION = 1
# Speech begins above the first and lasts until below the second probability.
_BEGINS, _ENDS = 0.5, 0.35
# Shorter sounds are no speech, shorter pauses none to cut at, longer ones are always
# left out; a piece that is too short alone joins one that is no farther away.
_SHORTEST_SOUND = 0.2
_SHORTEST_PAUSE = 0.2
_LONG_PAUSE = 1.5
_NEAR = 3.0
# What stays before and after speech, at most half of the pause.
_MARGIN = 0.1
# Seconds over which the level is averaged where a cut is forced, and the share of the
# longest that may be given away to find a quieter place.
_QUIET = 0.2
_SEARCHED = 0.5
# No speech that is so many dB below the speech, or below full scale where there is
# none, is silence; what is louder is music or noise.
_BELOW_SPEECH = 20.0
_SILENCE = -55.0
# Times are whole hundredths: those in ids and tables are the same.
_DIGITS = 2


@dataclass(frozen=True, order=True)
class Segment:
    """A part of a recording, in seconds from its start."""

    start: float
    end: float


@dataclass
class Cuts:
    """The segments of a recording, and where the rest of its seconds is."""

    seconds: float = 0.0
    segments: list[Segment] = field(default_factory=list)
    silence: float = 0.0
    music_or_noise: float = 0.0
    too_short: float = 0.0  # speech in pieces below the least duration
    forced: int = 0  # cuts where there was no pause

    @property
    def speech(self) -> float:
        """Seconds of all segments."""
        return sum(s.end - s.start for s in self.segments)


def find_segments(
    audio: str | Path | NDArray[np.float32],
    method: str = "vad",
    min_duration: float = 2.0,
    max_duration: float = 30.0,
) -> list[Segment]:
    """Find the speech of a recording, in segments of usable length.

    See :func:`find_cuts`, which also says what is left out.
    """
    return find_cuts(audio, method, min_duration, max_duration).segments


def find_cuts(
    audio: str | Path | NDArray[np.float32],
    method: str = "vad",
    min_duration: float = 2.0,
    max_duration: float = 30.0,
) -> Cuts:
    """Cut a recording where nobody speaks.

    Args:
        audio: A file that libsndfile reads, or a part of one (``segments.part_of``),
            read in pieces; or float32 ``[samples]`` at 16 kHz.
        method: ``vad`` (Silero's network), or ``energy``.
        min_duration: Shortest segment in seconds. Speech that is shorter joins a
            neighbour up to 3 s away, or is left out.
        max_duration: Longest. Where somebody speaks longer without a pause, the cut is
            at the least energetic place.

    Raises:
        RecipeError: The file cannot be used, limits or samples are of another kind.
    """
    _check_limits(min_duration, max_duration)
    if isinstance(audio, np.ndarray):
        if audio.ndim != 1 or audio.dtype != np.float32:
            raise RecipeError(
                f"segmentation: found samples {audio.dtype} {list(audio.shape)}, "
                "expected float32 [n] at 16 kHz"
            )
        heard = listen(iter([audio]), method)
    else:
        try:
            heard = hear(str(audio), method)
        except Unusable as error:
            raise RecipeError(f"{audio}: {error}") from None
    return cut_at_pauses(heard, min_duration, max_duration)


def hear(path: str, method: str = "vad") -> Activity:
    """Hear a file, or a part of one.

    Raises:
        Unusable: It is missing, damaged, or not audio.
    """
    with open_audio(path) as source:
        return listen(speech_stream(source), method)


def _check_limits(least: float, most: float) -> None:
    if not 0 <= 2 * least <= most:
        raise RecipeError(
            f"--min_duration {least:g}, --max_duration {most:g}: what is too long is "
            "cut in two, so the longest must be at least twice the shortest"
        )


def cut_at_pauses(heard: Activity, least: float, most: float) -> Cuts:
    """Make segments of what was heard.

    Pauses of 1.5 s or more are left out. Runs of speech that are longer than ``most``
    with the pauses in them are cut at the longest pause, again and again, the middle
    one of equals; only where there is no pause of 0.2 s in the longest, at the place
    with the least energy.
    """
    runs = _runs(heard)
    groups: list[list[Segment]] = []
    for run in runs:
        if groups and run.start - groups[-1][-1].end < _LONG_PAUSE:
            groups[-1].append(run)
        else:
            groups.append([run])
    cuts = Cuts(heard.seconds)
    pieces = [p for group in groups for p in _split(group, heard, least, most, cuts)]
    pieces = _join_short(pieces, least, most)
    edges = _with_margins(pieces, heard.seconds, most)
    for segment in edges:
        if segment.end - segment.start < least:
            cuts.too_short += segment.end - segment.start
        else:
            cuts.segments.append(segment)
    _count_rest(cuts, edges, heard)
    return cuts


def _runs(heard: Activity) -> list[Segment]:
    """Return where speech is, by two thresholds, without very short gaps and sounds."""
    begins, lasts = heard.speech >= _BEGINS, heard.speech >= _ENDS
    edges = np.flatnonzero(np.diff(np.concatenate([[False], lasts, [False]])))
    runs: list[Segment] = []
    for first, last in edges.reshape(-1, 2).tolist():
        inside = np.flatnonzero(begins[first:last])
        if not len(inside):
            continue
        # What led up to it is not speech yet.
        start = (first + int(inside[0])) * FRAME_SECONDS
        end = min(last * FRAME_SECONDS, heard.seconds)
        if runs and start - runs[-1].end < _SHORTEST_PAUSE:
            start = runs.pop().start
        runs.append(Segment(start, end))
    return [run for run in runs if run.end - run.start >= _SHORTEST_SOUND]


def _split(
    runs: list[Segment], heard: Activity, least: float, most: float, cuts: Cuts
) -> Iterator[Segment]:
    """Split speech with short pauses until every piece is short enough."""
    todo = [runs]
    room = most - 2 * _MARGIN
    while todo:
        group = todo.pop()
        start, end = group[0].start, group[-1].end
        if end - start <= room:
            yield Segment(start, end)
            continue
        gaps = [(b.start - a.end, a.end, b.start) for a, b in pairwise(group)]
        # Both sides must be worth keeping.
        good = [
            (gap, -abs(2 * a - start - end), n)
            for n, (gap, a, b) in enumerate(gaps)
            if a - start >= least and end - b >= least
        ]
        if good:
            n = max(good)[2]
            todo += [group[n + 1 :], group[: n + 1]]
            continue
        if gaps and (single := _longest(group)).end - single.start <= room:
            # Only a short piece at an edge makes it too long.
            n = 0 if gaps[0][1] - start < least else len(gaps) - 1
            todo += [group[n + 1 :], group[: n + 1]]
            continue
        cuts.forced += 1
        place = _quietest(heard, start, end, least, room)
        before = [r for r in group if r.start < place]
        after = [r for r in group if r.end > place]
        before[-1] = Segment(before[-1].start, min(place, before[-1].end))
        after[0] = Segment(max(place, after[0].start), after[0].end)
        todo += [after, before]


def _longest(runs: list[Segment]) -> Segment:
    return max(runs, key=lambda run: run.end - run.start)


def _quietest(
    heard: Activity, start: float, end: float, least: float, room: float
) -> float:
    """Return the least energetic place such that the first piece is short enough."""
    low = start + max(least, room * (1 - _SEARCHED))
    high = min(start + room, end - least)
    low = min(low, high)
    width = max(1, round(_QUIET / FRAME_SECONDS))
    first, last = round(low / FRAME_SECONDS), round(high / FRAME_SECONDS)
    around = heard.level[first : last + 1]
    smooth = np.convolve(np.pad(around, width // 2, "edge"), np.ones(width), "same")
    smooth = smooth[width // 2 :][: len(around)]
    place = (first + int(smooth.argmin())) * FRAME_SECONDS if len(around) else high
    return min(max(place, low), high)


def _join_short(pieces: list[Segment], least: float, most: float) -> list[Segment]:
    """Join pieces that are too short to the nearer neighbour, if that is near."""
    joined = list(pieces)
    n = 0
    while n < len(joined):
        piece = joined[n]
        if piece.end - piece.start + 2 * _MARGIN >= least:
            n += 1
            continue
        best = None
        for other in (n - 1, n + 1):
            if not 0 <= other < len(joined):
                continue
            first, last = sorted((piece, joined[other]))
            gap = last.start - first.end
            fits = last.end - first.start + 2 * _MARGIN <= most
            if gap <= _NEAR and fits and (best is None or gap < best[0]):
                best = gap, min(n, other), Segment(first.start, last.end)
        if best is None:
            n += 1
            continue
        _, n, joined[n : n + 2] = best[0], best[1], [best[2]]
        n = max(0, n - 1)
    return joined


def _with_margins(pieces: list[Segment], seconds: float, most: float) -> list[Segment]:
    found = []
    for n, piece in enumerate(pieces):
        before = piece.start - (pieces[n - 1].end if n else 0.0)
        after = (pieces[n + 1].start if n + 1 < len(pieces) else seconds) - piece.end
        start = piece.start - min(_MARGIN, before / 2 if n else before)
        end = piece.end + min(_MARGIN, after / 2 if n + 1 < len(pieces) else after)
        start, end = (round(max(0.0, x), _DIGITS) for x in (start, end))
        end = min(end, np.floor(seconds * 10**_DIGITS) / 10**_DIGITS)
        if end - start > most:
            end = round(start + most, _DIGITS)
        found.append(Segment(start, float(end)))
    return found


def _count_rest(cuts: Cuts, edges: list[Segment], heard: Activity) -> None:
    """Say of what is in no piece whether it is silence, or music and noise."""
    outside = np.ones(len(heard.level), bool)
    for segment in edges:
        first, last = (round(x / FRAME_SECONDS) for x in (segment.start, segment.end))
        outside[first:last] = False
    inside = heard.level[~outside & (heard.speech >= _BEGINS)]
    limit = float(np.median(inside)) - _BELOW_SPEECH if len(inside) else _SILENCE
    rest = cuts.seconds - sum(s.end - s.start for s in edges)
    loud = float((heard.level[outside] > limit).mean()) if outside.any() else 0.0
    cuts.music_or_noise = max(0.0, rest * loud)
    cuts.silence = max(0.0, rest - cuts.music_or_noise)


def segment_id(recording: str, segment: Segment) -> str:
    """Name a segment by its recording and its times in hundredths of a second.

    >>> segment_id("radio", Segment(12.34, 56.78))
    'radio-0001234-0005678'
    """
    start, end = (round(x * 10**_DIGITS) for x in (segment.start, segment.end))
    return f"{recording}-{start:07d}-{end:07d}"
