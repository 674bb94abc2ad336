"""What the batches of an epoch hold: audio, padding, crops, languages, replay."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from espnet2_lamer.data.speech import SAMPLE_RATE
from espnet2_lamer.train.batching import rounded_length


@dataclass(frozen=True)
class Shares:
    """Audio of an epoch's batches, over all ranks, in seconds.

    Attributes:
        batches: Number of batches.
        utterances: Number of utterances.
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
        """Say hours and share of each language beside its share of the data.

        Args:
            replay: Languages that count together as replay.
        """
        parts = [
            f"{language} {span(seconds)} ({_percent(seconds, self.audio)}, data "
            f"{_percent(self.data_languages[language], self.data)})"
            for language, seconds in self.languages.items()
        ]
        replayed = [language for language in self.languages if language in replay]
        if replayed:
            epoch = sum(self.languages[language] for language in replayed)
            data = sum(self.data_languages[language] for language in replayed)
            parts.append(
                f"replay ({', '.join(replayed)}) {_percent(epoch, self.audio)}, data "
                f"{_percent(data, self.data)}"
            )
        return "; ".join(parts)


def measure_shares(
    batches: Sequence[Sequence[str]],
    lengths: Mapping[str, int],
    max_samples: int,
    bucket: int,
    ranks: int = 1,
    languages: Mapping[str, str] | None = None,
) -> Shares:
    """Measure an epoch's batches.

    Args:
        batches: Utterances of each batch, over all ranks; rank r of R has
            ``batch[r::R]``.
        lengths: Samples of every utterance of the data.
        max_samples: Crop length.
        bucket: Batches are padded to multiples of this many samples.
        ranks: R.
        languages: Language by utterance.
    """
    parts = [batch[rank::ranks] for batch in batches for rank in range(ranks)]
    names = [utt for part in parts for utt in part]
    sizes = np.array([len(part) for part in parts])
    samples = np.array([lengths[utt] for utt in names])
    cropped = np.minimum(samples, max_samples)
    longest = np.maximum.reduceat(cropped, np.cumsum(sizes) - sizes).tolist()
    padded = sizes * [rounded_length(n, max_samples, bucket) for n in longest]
    by_language, of_data = {}, {}
    if languages is not None:
        codes = {name: n for n, name in enumerate(sorted(set(languages.values())))}
        index = [codes[languages[utt]] for utt in names]
        sums = np.bincount(index, weights=cropped, minlength=len(codes))
        by_language = dict(zip(codes, (sums / SAMPLE_RATE).tolist(), strict=True))
        index = [codes[languages[utt]] for utt in lengths]
        values = np.fromiter(lengths.values(), dtype=np.int64, count=len(lengths))
        sums = np.bincount(index, weights=values, minlength=len(codes))
        of_data = dict(zip(codes, (sums / SAMPLE_RATE).tolist(), strict=True))
    return Shares(
        batches=len(batches),
        utterances=len(names),
        passes=len(names) / len(lengths),
        audio=float(cropped.sum() / SAMPLE_RATE),
        cropped=float((samples - cropped).sum() / SAMPLE_RATE),
        padding=float((padded.sum() - cropped.sum()) / SAMPLE_RATE),
        largest=float(padded.max() / SAMPLE_RATE),
        largest_batch=int(padded.argmax()) // ranks,
        languages=by_language,
        data=sum(lengths.values()) / SAMPLE_RATE,
        data_languages=of_data,
    )


def span(seconds: float) -> str:
    """Say an amount of audio in hours, or in minutes where there is less than one."""
    if seconds >= 3600:
        return f"{seconds / 3600:.2f} h"
    return f"{seconds / 60:.2f} min"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %"
