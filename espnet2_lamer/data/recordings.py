"""Recordings read once, in pieces: parts of an hour in little memory."""

from collections.abc import Iterator, Mapping

import numpy as np

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.data.audio_decoding import (
    Source,
    Unusable,
    full_scale,
    part,
    stream,
)
from espnet2_lamer.data.segments import Times
from espnet2_lamer.data.usable import FLOATS, to_mono


def cut(
    source: Source, parts: Mapping[str, Times], check: bool = True
) -> Iterator[tuple[str, Source, np.ndarray | Unusable]]:
    """Yield name, description and samples of parts of an open recording, by their ends.

    Samples are float32 ``[frames, channels]`` at the recording's rate, or why there are
    none. What is held are the parts that are open, no more; the file is read to its end
    with ``check``, so that damage anywhere is seen by the caller, after the parts.

    Raises:
        Unusable: The recording is damaged.
    """
    wanted: list[tuple[int, float, str, Source]] = []
    for name, times in parts.items():
        try:
            own = part(source, times)
        except Unusable as error:
            yield name, source, error
            continue
        last = np.inf if own.frames is None else own.start + own.frames
        wanted.append((own.start, last, name, own))
    wanted.sort(key=lambda one: one[:3], reverse=True)
    going: list[tuple[tuple[int, float, str, Source], list[np.ndarray]]] = []
    position = 0
    for block in stream(source, check):
        end = position + len(block)
        while wanted and wanted[-1][0] < end:
            going.append((wanted.pop(), []))
        still = []
        for one, pieces in going:
            first, last, name, own = one
            # A copy, or the whole block stays for it.
            low = max(first - position, 0)
            pieces.append(block[low : min(last, end) - position].copy())
            if last <= end:
                yield name, own, np.concatenate(pieces)
            else:
                still.append((one, pieces))
        going, position = still, end
        if not check and not wanted and not going:
            return
    for (_, last, name, own), pieces in going:
        # Its end is the file's, or the container promised some samples more.
        short = 0 if last == np.inf else last - position
        if short > source.file.samplerate:
            yield name, own, Unusable(f"the recording ends {short} samples too early")
        else:
            yield name, own, np.concatenate(pieces)
    for _, _, name, own in wanted:
        yield name, own, Unusable("begins after the recording's end")


def speech_stream(source: Source) -> Iterator[np.ndarray]:
    """Yield a file, or a part of one, as float32 ``[some]`` at 16 kHz, mono.

    Channels and levels are treated as by :func:`~espnet2_lamer.data.usable.to_speech`,
    in every piece anew.

    Raises:
        Unusable: As :func:`~espnet2_lamer.data.audio_decoding.stream`.
    """
    import soxr

    rate, scale = source.file.samplerate, 1.0
    floats = source.file.subtype in FLOATS
    resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
    for block in stream(source):
        if floats:
            scale = max(scale, full_scale(block))
            block = block / np.float32(scale)
        mono = to_mono(block)[0]
        yield mono if rate == SAMPLE_RATE else resampler.resample_chunk(mono)
    if rate != SAMPLE_RATE:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
