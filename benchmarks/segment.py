"""Section ``segment``: where recordings with known pauses are cut, by two methods."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.joined_speech import RATE, Joined, inside, join, near
from benchmarks.options import option
from benchmarks.report import Table, verdict
from espnet2_lamer.data.audio import read_16k
from espnet2_lamer.data.segmentation import Cuts, find_cuts
from espnet2_lamer.data.sources import read_sources
from espnet2_lamer.data.sources.rows import Reading
from espnet2_lamer.data.sources.source import parse_sources
from espnet2_lamer.data.voice_activity import METHODS
from espnet2_lamer.fileio.datadir import read_table

TITLE = "recordings cut at pauses, network against energy"
DEVICES = ("cpu",)
#: Name, signal-to-noise ratio in dB, level of speech above music in dB.
CONDITIONS = (
    ("clean", None, None),
    ("noise 30 dB", 30.0, None),
    ("noise 20 dB", 20.0, None),
    ("noise 10 dB", 10.0, None),
    ("noise 30 dB, music as loud as speech", 30.0, 0.0),
    ("noise 20 dB, music 10 dB lower", 20.0, 10.0),
)


@dataclass(frozen=True)
class Options:
    """What is joined."""

    manifest: str = option("", "TSV of short utterances; empty: made-up speech")
    utterances: int = option(40, "utterances of a recording, one per language")
    without: tuple[str, ...] = option(("fsdd",), "sources of the manifest to leave out")
    shortest: float = option(0.4, "seconds of the shortest pause")
    longest: float = option(3.0, "seconds of the longest pause")
    seed: int = option(0, "of choice, pauses and noise")


QUICK = Options(utterances=3)


def load(options: Options) -> dict[str, list[NDArray[np.float32]]]:
    """Return utterances of each language, drawn at random."""
    if options.manifest:
        rows = read_sources(parse_sources(options.manifest), Reading())
        rows = [row for row in rows if row.source not in options.without]
        paths = {row.lang: [] for row in rows}
        for row in rows:
            paths[row.lang].append(row.path)
        return {lang: _draw(own, options) for lang, own in sorted(paths.items())}
    from espnet2_lamer.data.mini import build_mini

    with tempfile.TemporaryDirectory() as folder:
        scale = 0.01 * max(2, options.utterances / 4)
        build_mini(folder, 1, options.seed, minutes_scale=scale, langs=["eng"])
        wavs = [
            path
            for table in sorted(Path(folder).glob("*/wav.scp"))
            for path in read_table(table).values()
        ]
        return {"eng": _draw(wavs, options)}


def _draw(paths: list[str], options: Options) -> list[NDArray[np.float32]]:
    order = np.random.default_rng(options.seed).permutation(len(paths))
    return [read_16k(paths[i]) for i in order[: options.utterances]]


@dataclass
class Score:
    """What one method made of some recordings."""

    times: int = 0
    inside: float = 0.0
    near: float = 0.0
    speech: float = 0.0
    covered: float = 0.0
    segments: int = 0
    seconds: float = 0.0
    length: float = 0.0
    took: float = 0.0

    def add(self, joined: Joined, cuts: Cuts, took: float) -> None:
        """Take in a recording."""
        times = [x for s in cuts.segments for x in (s.start, s.end)]
        self.inside += inside(times, joined.pauses) * len(times)
        self.near += near(times, [x for s in joined.speech for x in s]) * len(times)
        self.times += len(times)
        self.speech += sum(b - a for a, b in joined.speech)
        self.covered += sum(
            max(0.0, min(s.end, b) - max(s.start, a))
            for s in cuts.segments
            for a, b in joined.speech
        )
        self.segments += len(cuts.segments)
        self.seconds += cuts.speech
        self.length += len(joined.samples) / RATE
        self.took += took

    @property
    def share(self) -> float:
        """Per cent of the cuts that are in pauses."""
        return 100 * self.inside / max(1, self.times)

    def cells(self) -> list[str]:
        """Return a row's figures."""
        return [
            f"{self.share:.1f}",
            f"{100 * self.near / max(1, self.times):.1f}",
            f"{100 * self.covered / self.speech:.1f}",
            f"{self.segments}",
            f"{self.seconds / max(1, self.segments):.1f}",
            f"{3600 * self.took / self.length:.0f}",
        ]


def run(options: Options, device: str) -> list[str | Table]:
    """Join speech under every condition and cut it by every method."""
    speech = load(options)
    header = ["condition", "method", "cuts in pauses, %", "at speech edges, %"]
    header += ["speech kept, %", "segments", "mean s", "s per hour"]
    table = Table("cuts", header)
    shares: dict[str, list[float]] = {method: [] for method in METHODS}
    pauses = options.shortest, options.longest
    hours = 0.0
    for name, snr, music in CONDITIONS:
        scores = {method: Score() for method in METHODS}
        for place, utterances in enumerate(speech.values()):
            seed = options.seed + place
            joined = join(utterances, seed, pauses, snr, music)
            for method, score in scores.items():
                started = time.perf_counter()
                cuts = find_cuts(joined.samples, method)
                score.add(joined, cuts, time.perf_counter() - started)
            hours += len(joined.samples) / RATE / 3600
        for method, score in scores.items():
            shares[method].append(score.share)
            table.rows.append([name, method, *score.cells()])
    about = (
        f"{hours:.2f} h: {options.utterances} utterances of each of "
        f"{', '.join(speech)} joined with pauses of {pauses[0]:g} to {pauses[1]:g} s, "
        "under six conditions. A cut (start or end of a segment) counts as in a pause "
        "if it is in a true one or within 0.25 s of it, at an edge if it is within "
        "0.25 s of where an utterance begins or ends. Methods: `vad` is Silero's "
        "network, `energy` a threshold between the levels of pauses and of speech in "
        "the minute around."
    )
    verdicts = ", ".join(
        f"`{method}` {min(own):.1f} ({verdict(min(own), '>=', 90)})"
        for method, own in shares.items()
    )
    return [about, table, f"Cuts in pauses, worst condition, %: {verdicts}"]
