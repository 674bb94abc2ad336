"""What an epoch's batches hold, how fast updates go, and when a training ends."""

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.train.batching import BucketIterFactory
from espnet2_lamer.train.collate import rounded_length

# Updates that the mean duration is taken over.
WINDOW = 200


@dataclass(frozen=True)
class Shares:
    """Batches and utterances of an epoch, over all ranks; audio in seconds.

    Attributes:
        passes: Utterances as a multiple of those in the data.
        audio: After cropping.
        cropped: Lost to crops.
        padding: Added to make batches rectangular.
        largest: Of one rank's largest batch, padding included.
        largest_batch: Its number in the epoch, from 0.
        languages: Audio after cropping by language.
        data: Audio of all the data, uncropped.
        data_languages: The same by language.
    """

    batches: int
    utterances: int
    passes: float
    audio: float
    cropped: float
    padding: float
    largest: float
    largest_batch: int
    languages: dict[str, float]
    data: float
    data_languages: dict[str, float]

    @property
    def padding_share(self) -> float:
        """Part of what is computed that is padding."""
        return self.padding / (self.audio + self.padding)

    @property
    def crop_loss(self) -> float:
        """Part of the batches' utterances that their crops leave out."""
        return self.cropped / (self.audio + self.cropped)

    def language_line(self, replay: Collection[str] = ()) -> str:
        """Say hours and share of each language, and of replay, beside the data's."""

        def shares(languages: Collection[str]) -> str:
            epoch = sum(self.languages[language] for language in languages)
            data = sum(self.data_languages[language] for language in languages)
            part, whole = 100 * epoch / self.audio, 100 * data / self.data
            return f"{part:.1f} %, data {whole:.1f} %"

        parts = [
            f"{language} {span(seconds)} ({shares([language])})"
            for language, seconds in self.languages.items()
        ]
        replayed = [language for language in self.languages if language in replay]
        if replayed:
            parts.append(f"replay ({', '.join(replayed)}) {shares(replayed)}")
        return "; ".join(parts)


def measure_shares(
    factory: BucketIterFactory, epoch: int, languages: Mapping[str, str] | None = None
) -> Shares:
    """Measure an epoch's batches of all ranks, and of languages by utterance."""
    lengths, ranks = factory.lengths, factory.world_size
    collate, batches = factory.make_collate(epoch), factory.plan(epoch)
    parts = [batch[rank::ranks] for batch in batches for rank in range(ranks)]
    names = [utt for part in parts for utt in part]
    sizes = np.array([len(part) for part in parts])
    samples = np.array([lengths[utt] for utt in names])
    cropped = np.minimum(samples, collate.max_samples)
    longest = np.maximum.reduceat(cropped, np.cumsum(sizes) - sizes).tolist()
    padded = sizes * [
        rounded_length(n, collate.max_samples, collate.bucket) for n in longest
    ]
    return Shares(
        batches=len(batches),
        utterances=len(names),
        passes=len(names) / len(lengths),
        audio=float(cropped.sum() / SAMPLE_RATE),
        cropped=float((samples - cropped).sum() / SAMPLE_RATE),
        padding=float((padded.sum() - cropped.sum()) / SAMPLE_RATE),
        largest=float(padded.max() / SAMPLE_RATE),
        largest_batch=int(padded.argmax()) // ranks,
        languages=_by_language(names, cropped, languages),
        data=sum(lengths.values()) / SAMPLE_RATE,
        data_languages=_by_language(list(lengths), list(lengths.values()), languages),
    )


def _by_language(
    utts: Sequence[str], samples: Sequence[int], languages: Mapping[str, str] | None
) -> dict[str, float]:
    """Seconds of each language, in alphabetical order."""
    if languages is None:
        return {}
    codes = {name: n for n, name in enumerate(sorted(set(languages.values())))}
    index = [codes[languages[utt]] for utt in utts]
    sums = np.bincount(index, weights=samples, minlength=len(codes))
    return dict(zip(codes, (sums / SAMPLE_RATE).tolist(), strict=True))


def span(seconds: float) -> str:
    """Say an amount of audio in hours, or in minutes where there is less than one."""
    if seconds >= 3600:
        return f"{seconds / 3600:.2f} h"
    return f"{seconds / 60:.2f} min"


@dataclass
class Pace:
    """Times updates, and what lies between epochs.

    The pace is known after the ``first`` updates; ``epochs`` is the last epoch.
    """

    updates_per_epoch: int
    epochs: int
    first: int = 20
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._durations: deque[float] = deque(maxlen=WINDOW)
        # Validation and the model's file take about the same time every epoch.
        self._between: float | None = None
        self._count = 0
        self._last: float | None = None

    def begin(self) -> None:
        """Note that an epoch's training begins."""
        now = self.clock()
        if self._last is not None:
            self._between = now - self._last
        self._last = now

    def update(self) -> bool:
        """Note that an update was made; whether that makes the pace known."""
        now = self.clock()
        self._count += 1
        # The process's first also starts loaders and chooses kernels.
        if self._count > 1:
            self._durations.append(now - self._last)
        self._last = now
        return self._count == self.first

    @property
    def seconds_per_update(self) -> float | None:
        """Mean of the last updates; ``None`` until there are enough."""
        if self._count < self.first or not self._durations:
            return None
        return sum(self._durations) / len(self._durations)

    def seconds_left(self, epoch: int, update: int) -> float | None:
        """Seconds to the end of the last epoch, ``update`` updates into ``epoch``."""
        seconds = self.seconds_per_update
        if seconds is None:
            return None
        epochs = self.epochs - epoch
        updates = epochs * self.updates_per_epoch + self.updates_per_epoch - update
        # The last epoch is followed by a validation, too.
        return updates * seconds + (epochs + 1) * (self._between or 0.0)

    def eta(self, epoch: int, update: int) -> str:
        """Say the time left and the end's date; empty until the pace is known."""
        left = self.seconds_left(epoch, update)
        if left is None:
            return ""
        end = datetime.now() + timedelta(seconds=left)
        note = "" if self._between is not None else ", validation not counted"
        return f"{timedelta(seconds=round(left))} ({end:%Y-%m-%d %H:%M}{note})"
