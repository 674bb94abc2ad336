"""Where the tokens of a text lie in CTC posteriors: the best alignment, and times."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Span(NamedTuple):
    """Frames of a token, ``start`` to before ``end``, and its mean log posterior."""

    token: int
    start: int
    end: int
    score: float


def viterbi(log_probs: np.ndarray, tokens: Sequence[int], blank: int = 0) -> np.ndarray:
    """Return the best CTC path of ``tokens`` through ``[T, V]`` log posteriors.

    A token or blank per frame, ``[T]``.

    Raises:
        ValueError: There are fewer frames than the tokens need.
    """
    frames = len(log_probs)
    needed = len(tokens) + sum(a == b for a, b in zip(tokens, tokens[1:], strict=False))
    if frames < needed:
        raise ValueError(f"{len(tokens)} tokens need {needed} frames, found {frames}")
    states = np.full(2 * len(tokens) + 1, blank)
    states[1::2] = tokens
    # A blank may be left out between two different tokens.
    skips = np.zeros(len(states), bool)
    skips[2:] = (states[2:] != blank) & (states[2:] != states[:-2])
    emitted = log_probs[:, states].astype(np.float64)  # [T, S]
    best = np.full(len(states), -np.inf)
    best[:2] = emitted[0, :2]
    came = np.zeros((frames, len(states)), np.int8)
    for frame in range(1, frames):
        options = np.full((3, len(states)), -np.inf)
        options[0] = best
        options[1, 1:] = best[:-1]
        options[2, 2:] = np.where(skips[2:], best[:-2], -np.inf)
        came[frame] = options.argmax(axis=0)
        best = options.max(axis=0) + emitted[frame]
    state = len(states) - 1
    if len(states) > 1 and best[-2] > best[-1]:
        state -= 1
    path = np.empty(frames, states.dtype)
    for frame in range(frames - 1, -1, -1):
        path[frame] = states[state]
        state -= came[frame, state]
    return path


def spans(path: np.ndarray, log_probs: np.ndarray, blank: int = 0) -> list[Span]:
    """Return the tokens of a path with their frames, blanks left out."""
    found, start = [], 0
    for frame in range(1, len(path) + 1):
        if frame < len(path) and path[frame] == path[start]:
            continue
        token = int(path[start])
        if token != blank:
            score = float(log_probs[start:frame, token].mean())
            found.append(Span(token, start, frame, score))
        start = frame
    return found


def frame_seconds(samples: int, frames: int, hop: int, rate: int) -> np.ndarray:
    """Return where frames begin, ``[T + 1]`` seconds; the last is the end of the last.

    Convolutions lose as many frames at the start as at the end; frames are ``hop``
    samples apart.
    """
    before = max(0.0, (samples - frames * hop) / 2)
    edges = before + hop * np.arange(frames + 1)
    return np.minimum(edges, samples) / rate
