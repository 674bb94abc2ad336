"""Batches: which utterances, cropped, padded and masked (CPU, seeded)."""

import hashlib
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espnet2_lamer.constants import SAMPLE_RATE, STRIDE, num_frames
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers.config import check_values
from espnet2_lamer.train.utterances import Batches, Languages, Lengths

# Pads labels in a batch; never a unit.
LABEL_PADDING = -1
Utterance = tuple[str, dict[str, np.ndarray]]
Samples = int | np.ndarray


def read_hours(words: Sequence[str]) -> dict[str, float]:
    """Read ``eng=0.02 cmn=1``, hours by language; raise ``RecipeError`` for others."""
    hours: dict[str, float] = {}
    for word in words:
        lang, _, number = word.partition("=")
        try:
            hours[lang] = float(number)
        except ValueError:
            hours[lang] = 0.0
        right = lang and 0 < hours[lang] < float("inf")
        form = "LANGUAGE=HOURS above 0, e.g. eng=0.5; exclude_langs leaves one out"
        check_values("", ("max_hours", word, right, form))
    return hours


def chosen_utterances(
    lengths: Mapping[str, int],
    utt2lang_file: Path,
    excluded: Collection[str] = (),
    hours: Mapping[str, float] | None = None,
) -> Lengths:
    """Leave languages out; of others keep random utterances up to so many hours.

    More hours keep what fewer kept, and more; one utterance of the
    language always stays.

    Raises:
        RecipeError: A language is not there, an utterance has none to go by, or none
            is left.
    """
    lengths = Lengths.of(lengths)
    if not utt2lang_file.is_file():
        raise RecipeError(
            f"{utt2lang_file}: file not found; it is made by audio formatting"
        )
    languages = Languages.read(utt2lang_file, lengths)
    unknown = np.flatnonzero(languages.codes < 0)
    if excluded and len(unknown):
        raise RecipeError(
            f"{utt2lang_file}: no language for {len(unknown)} utterances, first "
            f"{lengths.name(unknown[0])!r}; exclude_langs needs one for each"
        )
    there = {name for n, name in enumerate(languages.names) if n in languages.codes}
    keep = np.ones(len(lengths), bool)
    for option, limits in (
        ("exclude_langs", dict.fromkeys(excluded, 0.0)),
        ("max_hours", hours or {}),
    ):
        if wrong := sorted(limits.keys() - there):
            raise RecipeError(
                f"{option}: found {', '.join(wrong)}, expected some of "
                f"{', '.join(sorted(there))} ({utt2lang_file})"
            )
        there -= limits.keys()
        for lang, most in limits.items():
            utts = np.flatnonzero(languages.codes == languages.names.index(lang))
            utts = utts[np.random.default_rng(0).permutation(len(utts))]
            total = np.cumsum(lengths.samples[utts], dtype=np.int64)
            total = total / (SAMPLE_RATE * 3600)
            kept = max(int(most > 0), np.searchsorted(total, most, side="right"))
            keep[utts[kept:]] = False
    if not keep.any():
        raise RecipeError(
            f"exclude_langs: {', '.join(sorted(excluded))} leaves no utterance of "
            f"{utt2lang_file}"
        )
    return lengths.only(keep)


@dataclass(frozen=True)
class CollateOptions:
    """``collate_fn_conf``: most samples of a training crop, padding granularity."""

    max_sample_size: int = 250000
    bucket_samples: int = 4000


def rounded_length(num_samples: Samples, max_samples: int, bucket: int) -> Samples:
    """Length that a row of ``num_samples`` (a number, or several) takes in a batch.

    Rounded up to a bucket, but never above the crop length: crops themselves, the most
    frequent length of long utterances, need no padding.
    """
    return np.minimum(-(-num_samples // bucket) * bucket, max_samples)


def span_mask(
    num_frames: int,
    mask_prob: float,
    mask_length: int,
    generator: np.random.Generator,
    min_masks: int = 2,
) -> np.ndarray:
    """Draw the masked frames of one utterance of ``num_frames`` (T).

    HuBERT's span masks with fairseq's ``static`` statistics: ``floor(mask_prob * T /
    mask_length + u)`` spans, u uniform in [0, 1), at least ``min_masks``, start at
    distinct random frames; spans may overlap. Unlike fairseq, rows of a batch are not
    thinned out to the count of the least masked one.

    Returns:
        Sorted frame indices, int64; none below two frames.
    """
    if num_frames < 2:
        return np.zeros(0, dtype=np.int64)
    spans = int(mask_prob * num_frames / mask_length + generator.random())
    spans = max(spans, min_masks)
    length = min(mask_length, num_frames - 1)
    if num_frames - length <= spans:
        length = max(num_frames - spans - 1, 1)
    starts = generator.choice(
        num_frames - length, min(spans, num_frames - length), replace=False
    )
    covered = (starts[:, None] + np.arange(length)).ravel()
    return np.unique(covered)


def utterance_generator(seed: int, draw: int, utt_id: str) -> np.random.Generator:
    """Return the generator of one utterance in one draw, whoever loads it."""
    text = f"{seed} {draw} {utt_id}".encode()
    return np.random.default_rng(
        int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    )


@dataclass
class LamerCollate:
    """Collate function of masked prediction.

    Crops and masks follow from ``seed``, the utterance and ``draw``, the number of the
    pass over the data, from 1: each time that an utterance is heard they are others.
    Crops start at multiples of 320 samples, so labels stay aligned exactly. Batches
    are padded to multiples of ``bucket`` samples, in training at most to the crop
    length ``max_samples``; validation is not cropped, and its masks are fixed. Masks
    never touch padding.
    """

    max_samples: int
    bucket: int
    mask_prob: float
    mask_length: int
    seed: int
    draw: int
    train: bool

    def __post_init__(self) -> None:
        self.draw = self.draw if self.train else 0

    def __call__(
        self, batch: Collection[Utterance]
    ) -> tuple[list[str], dict[str, torch.Tensor]]:
        """Return utterance ids and padded tensors (see the model's ``forward``).

        In place of ``speech`` an utterance that is not cropped may have ``features [T,
        C]``, a tensor, and the number of its ``samples``. Labels without one unit per
        frame raise ``RecipeError``.
        """
        names, waveforms, labels, masks, langs = [], [], [], [], []
        samples, stored = [], []
        for utt_id, data in batch:
            generator = utterance_generator(self.seed, self.draw, utt_id)
            features = data.get("features")
            speech = np.asarray(data.get("speech", ()), dtype=np.float32)
            text = np.asarray(data["text"], dtype=np.int64)
            count = len(speech) if features is None else data["samples"]
            frames = num_frames(count)
            if len(text) != frames:
                raise RecipeError(
                    f"utterance {utt_id}: found {len(text)} units for {count} samples, "
                    f"expected {frames} ((n - 400) // 320 + 1); make the labels anew"
                )
            if self.train and count > self.max_samples:
                last = (count - self.max_samples) // STRIDE
                start = int(generator.integers(last + 1))
                speech = speech[start * STRIDE :][: self.max_samples]
                count = len(speech)
                text = text[start:][: num_frames(count)]
            names.append(utt_id)
            samples.append(count)
            stored.append(features)
            if features is None:
                waveforms.append(speech)
            labels.append(text)
            masks.append(
                span_mask(len(text), self.mask_prob, self.mask_length, generator)
            )
            if "lang" in data:
                langs.append(int(np.ravel(data["lang"])[0]))
        longest = max(samples)
        limit = self.max_samples if self.train else sys.maxsize
        padded = rounded_length(longest, limit, self.bucket)
        output = {
            "speech": _pad(waveforms, 0.0, padded, np.float32),
            "speech_lengths": torch.tensor(samples),
            "text": _pad(labels, LABEL_PADDING, num_frames(padded)),
            "text_lengths": torch.tensor([len(t) for t in labels]),
            "mask_indices": _pad(masks, -1, max(1, *map(len, masks))),
            "mask_indices_lengths": torch.tensor([len(m) for m in masks]),
        }
        # In the flattened grid of frames: a device would have to be asked for these.
        starts = num_frames(padded) * np.arange(len(names))
        for key, rows in (
            ("real_frames", [np.arange(len(t)) for t in labels]),
            ("masked_frames", masks),
        ):
            grid = [start + row for start, row in zip(starts, rows, strict=True)]
            output[key] = torch.from_numpy(np.concatenate(grid))
        if langs:
            output["lang"] = torch.tensor(langs)
        if len(waveforms) < len(names):
            output |= _stored(stored, num_frames(padded))
        return names, output


def _stored(rows: list[torch.Tensor | None], frames: int) -> dict[str, torch.Tensor]:
    """Features of the utterances that have some, and where each utterance is.

    Those without count first, in their order, then those with.
    """
    there = [row for row in rows if row is not None]
    # Padding is masked before anything mixes frames.
    features = there[0].new_zeros(len(there), frames, there[0].shape[1])
    for target, row in zip(features, there, strict=True):
        target[: len(row)] = row
    is_there = np.array([row is not None for row in rows])
    places = np.argsort(np.argsort(is_there, kind="stable"), kind="stable")
    return {"features": features, "feature_places": torch.from_numpy(places)}


def _pad(
    rows: list[np.ndarray], value: float, length: int, dtype: Any = np.int64
) -> torch.Tensor:
    padded = np.full((len(rows), length), value, dtype=dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(padded)


def make_batches(
    lengths: Mapping[str, int],
    batch_bins: int,
    max_samples: int,
    bucket: int,
    generator: np.random.Generator,
    shuffle: bool,
    ranks: int = 1,
) -> Batches:
    """Group utterances so that a batch holds at most ``batch_bins`` padded samples.

    Utterances are shuffled, then ordered by rounded length, so a batch mixes at most
    the neighbouring lengths, and every batch but the last is full: few shapes, which
    lets kernels and plans be reused (oneDNN, cuDNN, CUDA graphs). A batch has at least
    ``ranks`` utterances, one for each; lengths are in samples.

    Raises:
        ValueError: There are fewer utterances than ranks.
    """
    lengths = Lengths.of(lengths)
    count = len(lengths)
    if count < ranks:
        raise ValueError(f"found {count} utterances for {ranks} ranks")
    order = generator.permutation(count) if shuffle else np.arange(count)
    rounded = rounded_length(
        lengths.samples[order].astype(np.int64), max_samples, bucket
    )
    by_length = np.argsort(-rounded, kind="stable")
    order, rounded = order[by_length].astype(np.int32), rounded[by_length]
    starts = [0]
    while True:
        start = starts[-1] + max(ranks, batch_bins // int(rounded[starts[-1]]))
        if start >= count:
            break
        starts.append(start)
    if count - starts[-1] < ranks:
        # The rest of the last batch comes from the one before, whose lengths are next.
        last = starts.pop()
        if count - ranks - starts[-1] >= ranks:
            last = count - ranks
            starts.append(last)
    bounds = np.array([*starts, count], np.int64)
    chosen = generator.permutation(len(starts)) if shuffle else slice(None)
    return Batches(lengths, order, bounds[:-1][chosen], bounds[1:][chosen])
