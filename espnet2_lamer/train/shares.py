"""What an epoch's batches hold: audio, padding, languages, and each rank's part."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping
from operator import itemgetter

import numpy as np

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.train.batching import rounded_length
from espnet2_lamer.train.iterator import BucketIterFactory
from espnet2_lamer.train.utterances import Batches, Languages

# Batches that are measured together.
_BATCHES = 1 << 16
# A rank with less than this share of the mean audio waits for the others.
FAIR_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class Shares:
    """Batches and utterances of an epoch, over all ranks; audio in seconds.

    ``batches`` are its iterations, ``micro_batches`` what each rank computes for them.
    ``passes`` are utterances as a multiple of those in the data, ``audio`` (also by
    language) is what crops leave, ``largest`` that of one rank's micro-batch
    ``largest_part`` of ``largest_batch`` (counted from 0), padding included, ``data``
    all there is, uncropped. In ``idle`` iterations a rank has a micro-batch without an
    utterance, in ``unfair`` ones less than half of the mean audio. ``served`` is what
    the feature cache has.
    """

    batches: int
    micro_batches: int
    utterances: int
    passes: float
    audio: float
    cropped: float
    padding: float
    largest: float
    largest_batch: int
    largest_part: int
    idle: int
    unfair: int
    languages: dict[str, float]
    data: float
    data_languages: dict[str, float]
    served: float = 0.0

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
    factory: BucketIterFactory,
    epoch: int,
    languages: Mapping[str, str] | Languages | None = None,
) -> Shares:
    """Measure an epoch's batches of all ranks, and of languages by utterance."""
    lengths = factory.lengths
    collate, batches = factory.make_collate(1), factory.plan(epoch)
    known = None if languages is None else Languages.of(languages, lengths)
    sums, largest, own = np.zeros(5, np.int64), (0, 0, 0), Counter()
    micro_batches = idle = unfair = 0
    for first in range(0, len(batches), _BATCHES):
        block = batches[first : first + _BATCHES]
        utts, part, cells = _cells(factory, block)
        samples = lengths.samples[utts].astype(np.int64)
        cropped = np.minimum(samples, collate.max_samples)
        longest = np.zeros(len(cells), np.int64)
        np.maximum.at(longest, part, cropped)
        count = np.bincount(part, minlength=len(cells))
        length = rounded_length(longest, collate.max_samples, collate.bucket)
        padded, served = count * length, factory.is_stored(utts, length[part])
        sums += (
            *(len(utts), samples.sum(), cropped.sum(), padded.sum()),
            cropped[served].sum(),
        )
        iteration, micro, rank = cells.T
        where = int(padded.argmax())
        found = int(padded[where]), first + int(iteration[where]), int(micro[where])
        largest = max(largest, found, key=itemgetter(0))
        own.update(_by_language(utts, cropped, known))
        audio = np.zeros((len(block), factory.world_size), np.int64)
        np.add.at(audio, (iteration, rank), padded)
        micro_batches += int((rank == 0).sum())
        idle += len(np.unique(iteration[count == 0]))
        unfair += int((audio.min(1) < FAIR_SHARE * audio.mean(1)).sum())
    count, samples, cropped, padded, served = sums.tolist()
    return Shares(
        batches=len(batches),
        micro_batches=micro_batches,
        utterances=count,
        passes=count / len(lengths),
        audio=cropped / SAMPLE_RATE,
        cropped=(samples - cropped) / SAMPLE_RATE,
        padding=(padded - cropped) / SAMPLE_RATE,
        largest=largest[0] / SAMPLE_RATE,
        largest_batch=largest[1],
        largest_part=largest[2],
        idle=idle,
        unfair=unfair,
        languages=dict(own),
        data=int(lengths.samples.sum(dtype=np.int64)) / SAMPLE_RATE,
        data_languages=_by_language(slice(None), lengths.samples, known),
        served=served / SAMPLE_RATE,
    )


def _cells(
    factory: BucketIterFactory, block: Batches
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Utterances of a block, which cell each is in, and what each cell is.

    A cell is a micro-batch of a rank: ``[iteration, micro-batch, rank]``.
    """
    ranks = factory.world_size
    if factory.update_bins:
        utts, sizes, cells = [], [], []
        for iteration in range(len(block)):
            for micro, row in enumerate(factory.split(block.numbers(iteration))):
                utts += row
                sizes += map(len, row)
                cells += ([iteration, micro, rank] for rank in range(ranks))
        part = np.repeat(np.arange(len(cells)), sizes)
        return np.concatenate(utts), part, np.array(cells)
    size = block.ends - block.starts
    # Which batch each utterance is of, and which of its utterances.
    batch = np.repeat(np.arange(len(block)), size)
    place = np.arange(len(batch)) - np.repeat(np.cumsum(size) - size, size)
    utts = block.order[np.repeat(block.starts, size) + place]
    iteration = np.repeat(np.arange(len(block)), ranks)
    rank = np.tile(np.arange(ranks), len(block))
    cells = np.stack([iteration, np.zeros_like(rank), rank], 1)
    return utts, batch * ranks + place % ranks, cells


def _by_language(
    utts: np.ndarray | slice, samples: np.ndarray, languages: Languages | None
) -> dict[str, float]:
    """Seconds of each language, in alphabetical order."""
    if languages is None:
        return {}
    names = languages.names
    sums = np.bincount(languages.codes[utts], weights=samples, minlength=len(names))
    seconds = (sums / SAMPLE_RATE).tolist()
    return dict(sorted(zip(names, seconds, strict=True)))


def span(seconds: float) -> str:
    """Say an amount of audio in hours, or in minutes where there is less than one."""
    if seconds >= 3600:
        return f"{seconds / 3600:.2f} h"
    return f"{seconds / 60:.2f} min"
