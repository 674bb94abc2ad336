"""Long recordings with known pauses, joined from short utterances."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RATE = 16000


@dataclass(frozen=True)
class Joined:
    """A recording, and where its pauses and its speech are, in seconds."""

    samples: NDArray[np.float32]
    pauses: list[tuple[float, float]]
    speech: list[tuple[float, float]]


def join(
    utterances: Sequence[NDArray[np.float32]],
    seed: int,
    pauses: tuple[float, float] = (0.4, 3.0),
    snr: float | None = None,
    music: float | None = None,
) -> Joined:
    """Join utterances with pauses of uniformly drawn lengths.

    Args:
        utterances: float32 ``[samples]`` at 16 kHz; brought to one level.
        seed: Of pauses, noise and music.
        pauses: Shortest and longest, in seconds.
        snr: Level of the speech above pink noise that is everywhere, in dB.
        music: Level of the speech above a tune that fills some of the longer pauses and
            20 s at the end, in dB.
    """
    generator = np.random.default_rng(seed)
    pieces, gaps, spoken, position = [], [], [], 0

    def add(piece: NDArray[np.float32], into: list) -> None:
        nonlocal position
        into.append((position / RATE, (position + len(piece)) / RATE))
        pieces.append(piece)
        position += len(piece)

    for utterance in map(trimmed, utterances):
        length = round(generator.uniform(*pauses) * RATE)
        add(np.zeros(length, np.float32), gaps)
        level = np.sqrt(np.mean(utterance**2))
        add((utterance * (0.06 / level)).astype(np.float32), spoken)
    last = 20.0 if music is not None else generator.uniform(*pauses)
    add(np.zeros(round(last * RATE), np.float32), gaps)
    samples = np.concatenate(pieces)
    if music is not None:
        tune = _tune(len(samples), generator)
        tune *= 0.06 * 10 ** (-music / 20) / np.sqrt(np.mean(tune**2))
        for start, end in gaps:
            if end - start > 1.5:
                own = slice(round(start * RATE), round(end * RATE))
                samples[own] += tune[own]
    if snr is not None:
        noise = _pink(len(samples), generator)
        noise *= 0.06 * 10 ** (-snr / 20) / np.sqrt(np.mean(noise**2))
        samples = samples + noise
    peak = np.abs(samples).max()
    samples = samples * min(1.0, 0.99 / peak)
    return Joined(samples.astype(np.float32), gaps, spoken)


def trimmed(utterance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an utterance from its first to its last sound.

    That is louder than 35 dB below the top, and than 10 dB above the quietest frames.
    What is before and after belongs to the pauses.
    """
    size = RATE // 50
    frames = utterance[: len(utterance) // size * size].reshape(-1, size)
    level = 10 * np.log10(np.square(frames).mean(1) + 1e-12)
    limit = max(level.max() - 35, np.quantile(level, 0.02) + 10)
    heard = np.flatnonzero(level > limit)
    return utterance[heard[0] * size : (heard[-1] + 1) * size]


def _pink(count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    size = 1 << 20
    spectrum = np.fft.rfft(generator.standard_normal(size))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    return np.resize(np.fft.irfft(spectrum), count)


def _tune(count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Chords of three tones with overtones, a new one every 0.4 s."""
    size = round(0.4 * RATE)
    time, chords = np.arange(size) / RATE, []
    for _ in range(32):
        notes = 220 * 2 ** (generator.integers(0, 24, 3) / 12)
        waves = [
            np.sin(2 * np.pi * note * n * time) / n for note in notes for n in (1, 2, 3)
        ]
        chords.append(np.sum(waves, 0) * np.exp(-2 * time))
    return np.resize(np.concatenate(chords), count)


def inside(times: Sequence[float], spans: Sequence[tuple[float, float]]) -> float:
    """Return the share of times that are in a span, or within 0.25 s of one."""
    good = [any(a - 0.25 <= t <= b + 0.25 for a, b in spans) for t in times]
    return float(np.mean(good)) if good else 1.0


def near(times: Sequence[float], edges: Sequence[float]) -> float:
    """Return the share of times within 0.25 s of an edge."""
    close = [min(abs(t - edge) for edge in edges) <= 0.25 for t in times]
    return float(np.mean(close)) if close else 1.0
