"""What a plan knows of speech: lengths, by language and split."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from espnet2_lamer.data.audio import durations

#: Upper ends of the buckets of utterance length, in seconds.
BUCKETS = (2, 5, 10, 20, 30, 60)
#: Files per set whose header is read; of more an even sample stands for the others.
HEADERS = 2000


@dataclass
class Part:
    """One split of one language.

    Attributes:
        seconds: Lengths of utterances whose header could be read.
        weight: Utterances that each of them stands for.
        text: Utterances with text, of ``files``.
        files: Utterances.
        broken: Why headers could not be read, and how often.
    """

    seconds: list[float] = field(default_factory=list)
    weight: float = 1.0
    text: int = 0
    files: int = 0
    broken: Counter[str] = field(default_factory=Counter)

    @property
    def bad(self) -> int:
        """Headers that could not be read, among those that were looked at."""
        return self.broken.total()

    def hours(self, low: float = 0.0, high: float = float("inf")) -> float:
        """Hours of utterances of at least ``low`` and at most ``high`` seconds."""
        chosen = (s for s in self.seconds if low <= s <= high)
        return self.weight * sum(chosen) / 3600

    def buckets(self) -> list[float]:
        """Hours of each of :data:`BUCKETS`, and of what is longer."""
        found = [0.0] * (len(BUCKETS) + 1)
        for seconds in self.seconds:
            found[sum(seconds > end for end in BUCKETS)] += seconds
        return [self.weight * total / 3600 for total in found]


@dataclass
class Speech:
    """All of it, by language and split, and where the figures are from.

    Attributes:
        parts: By language, then by split.
        source: What was read, for people.
        measured: Whether lengths are those of files.
        remarks: What was assumed, for people.
        recordings: Seconds of recordings that stage 1 will cut at pauses.
        unpacked: Bytes that stage 1 will take out of archives.
    """

    parts: dict[str, dict[str, Part]]
    source: str
    measured: bool
    remarks: list[str] = field(default_factory=list)
    recordings: float = 0.0
    unpacked: int = 0


def lengths_of(wavs: Mapping[str, str], nj: int) -> Part:
    """Read the headers of files, or of an even sample of many."""
    step = -(-len(wavs) // HEADERS) or 1
    chosen = dict(list(wavs.items())[::step])
    part = Part(files=len(wavs), weight=len(wavs) / max(1, len(chosen)))
    for _, seconds, problem in durations(chosen, nj, "read headers"):
        if problem:
            part.broken[problem.split(":")[0]] += 1
        else:
            part.seconds.append(seconds)
    return part
