"""Where speech is: a probability and a level for each 32 ms of a recording."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.errors import RecipeError

#: Samples of a frame, which is what the network takes at once.
FRAME = 512
FRAME_SECONDS = FRAME / SAMPLE_RATE
#: How speech is told from the rest.
METHODS = ("vad", "energy")
# A recording is heard in stripes side by side, since one frame at a time takes seven
# times as long; each is heard from so many frames before, which settle its state.
_STRIPES = 32
_STRIPE = 480
_BEFORE = 64
_BLOCK = _STRIPES * _STRIPE * FRAME
# Of digital silence.
_QUIETEST = -120.0
# The energy baseline: seconds from which levels of pause and speech are taken, which
# quantiles these are, where between them the threshold is, and how many dB they differ
# where there is both.
_WINDOW = 60.0
_PAUSE, _SPEECH = 0.10, 0.95
_BETWEEN = 0.4
_LEAST_RANGE = 6.0
# Frames over which it averages.
_SMOOTH = 5


@dataclass(frozen=True)
class Activity:
    """What was heard: one value per frame of :data:`FRAME` samples at 16 kHz."""

    speech: NDArray[np.float32]  # probability
    level: NDArray[np.float32]  # dB of full scale
    seconds: float


def listen(blocks: Iterable[NDArray[np.float32]], method: str = "vad") -> Activity:
    """Hear a recording that comes in pieces of any length, 16 kHz mono.

    ``vad`` is Silero's network, ``energy`` a threshold on the level. Eight minutes are
    held at once.

    Raises:
        RecipeError: There is no such method.
    """
    if method not in METHODS:
        raise RecipeError(f"segmentation: found {method!r}, expected one of {METHODS}")
    network = _Striped() if method == "vad" else None
    speech, level, count = [], [], 0
    for block in _regrouped(blocks, _BLOCK):
        count += len(block)
        frames = np.zeros(-(-len(block) // FRAME) * FRAME, np.float32)
        frames[: len(block)] = block
        power = np.square(frames.reshape(-1, FRAME)).mean(1)
        level.append(10 * np.log10(np.maximum(power, 10 ** (_QUIETEST / 10))))
        if network:
            speech.append(network(frames))
    levels = np.concatenate([*level, np.zeros(0, np.float32)]).astype(np.float32)
    heard = np.concatenate(speech) if speech else _louder(levels)
    return Activity(heard, levels, count / SAMPLE_RATE)


def _regrouped(
    blocks: Iterable[NDArray[np.float32]], size: int
) -> Iterator[NDArray[np.float32]]:
    held: list[NDArray[np.float32]] = []
    count = 0
    for block in blocks:
        while len(block):
            piece, block = np.split(block, [size - count])
            held.append(piece)
            count += len(piece)
            if count == size:
                yield np.concatenate(held)
                held, count = [], 0
    if count:
        yield np.concatenate(held)


class _Striped:
    """The network over a long recording, as many stripes at once."""

    def __init__(self) -> None:
        self.before = np.zeros(_BEFORE * FRAME, np.float32)

    def __call__(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probabilities of the next samples, whole frames of them."""
        import torch

        from espnet2_lamer.precision import single_thread

        count = len(frames) // FRAME
        # Short recordings would be one stripe, frame by frame.
        length = min(_STRIPE, max(_BEFORE, -(-count // _STRIPES)))
        stripes = -(-count // length)
        padded = np.zeros((_BEFORE + stripes * length) * FRAME, np.float32)
        padded[: _BEFORE * FRAME] = self.before
        padded[_BEFORE * FRAME :][: len(frames)] = frames
        self.before = padded[len(frames) :][: _BEFORE * FRAME].copy()
        windows = np.lib.stride_tricks.sliding_window_view(
            padded, (_BEFORE + length) * FRAME
        )[:: length * FRAME]
        model, found = _network(), np.empty((stripes, length), np.float32)
        model.reset_states()
        # More threads only wait for each other: it is a small network.
        with torch.inference_mode(), single_thread():
            for n in range(_BEFORE + length):
                part = windows[:, n * FRAME : (n + 1) * FRAME]
                heard = model(torch.from_numpy(part.copy()), SAMPLE_RATE)
                if n >= _BEFORE:
                    found[:, n - _BEFORE] = heard[:, 0].numpy()
        return found.reshape(-1)[:count]


@cache
def _network() -> Any:
    from espnet2_lamer.precision import single_thread

    # Its import leaves one thread to everybody.
    with warnings.catch_warnings(), single_thread():
        # TorchScript is what its weights come in.
        warnings.simplefilter("ignore")
        from silero_vad import load_silero_vad

        return load_silero_vad()


def _louder(level: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 1 where the level is nearer to that of speech than to that of pauses."""
    if not len(level):
        return level
    kernel = np.ones(_SMOOTH) / _SMOOTH
    smooth = np.convolve(np.pad(level, _SMOOTH // 2, "edge"), kernel, "valid")
    width = round(_WINDOW / FRAME_SECONDS)
    found = np.zeros(len(level), np.float32)
    for start in range(0, len(level), width // 2):
        around = smooth[max(0, start - width // 4) : start + width * 3 // 4]
        low, high = np.quantile(around, (_PAUSE, _SPEECH))
        own = slice(start, start + width // 2)
        if high - low >= _LEAST_RANGE:
            found[own] = smooth[own] > low + _BETWEEN * (high - low)
    return found
