"""A long recording read in pieces: a few seconds are in memory, whatever its length."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.data.audio_decoding import Unusable, duration, open_audio
from espnet2_lamer.errors import RecipeError

# What resampling sees before and after a piece, so that its edges are the recording's.
_MARGIN_SECONDS = 0.1


@dataclass(frozen=True)
class Recording:
    """An open recording of ``seconds``; :meth:`read` gives a part of it."""

    path: str
    seconds: float
    file: Any  # soundfile.SoundFile

    def read(self, start: float, end: float) -> np.ndarray:
        """Return the samples between two seconds, float32 ``[n]``, 16 kHz, mono.

        Channels are averaged, unless the average nearly cancels: then it is the
        loudest one.

        Raises:
            RecipeError: The part cannot be read.
        """
        rate = self.file.samplerate
        margin = 0 if rate == SAMPLE_RATE else round(_MARGIN_SECONDS * rate)
        first, last = round(start * rate), round(end * rate)
        before = min(margin, first)
        try:
            self.file.seek(first - before)
            block = self.file.read(
                last + margin - first + before, dtype="float32", always_2d=True
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise RecipeError(
                f"{self.path}: cannot read {start:.2f} to {end:.2f} s ({error}); "
                "convert the file, e.g. to FLAC"
            ) from error
        mono = _mono(block)
        if rate == SAMPLE_RATE:
            return mono
        import soxr

        mono = soxr.resample(mono, rate, SAMPLE_RATE)
        cut = round(before * SAMPLE_RATE / rate)
        return mono[cut : cut + round((last - first) * SAMPLE_RATE / rate)]


def _mono(block: np.ndarray) -> np.ndarray:
    if block.shape[1] == 1 or not len(block):
        return np.ascontiguousarray(block[:, 0])
    mono = block.mean(axis=1, dtype=np.float32)
    powers = block.var(axis=0)
    # Independent channels leave the sum of their powers over the square of their count.
    if mono.var() * block.shape[1] ** 2 < 0.5 * powers.sum():
        return np.ascontiguousarray(block[:, int(powers.argmax())])
    return mono


@contextmanager
def open_recording(path: str) -> Iterator[Recording]:
    """Open an audio file of a format that libsndfile reads.

    Raises:
        RecipeError: It is missing, empty or not audio.
    """
    try:
        with open_audio(path) as source:
            yield Recording(path, duration(source), source.file)
    except Unusable as error:
        raise RecipeError(f"{path}: {error}") from error
