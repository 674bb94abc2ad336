"""Turn utterances into a padded batch: crop, pad, draw masks (CPU, seeded)."""

import hashlib
import sys
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch

from espnet2_lamer.constants import STRIDE, num_frames
from espnet2_lamer.errors import RecipeError

# Pads labels in a batch; never a unit.
LABEL_PADDING = -1
Utterance = tuple[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class CollateOptions:
    """``collate_fn_conf``: most samples of a training crop, padding granularity."""

    max_sample_size: int = 250000
    bucket_samples: int = 4000


def rounded_length(num_samples: int, max_samples: int, bucket: int) -> int:
    """Length that a row of ``num_samples`` occupies in a batch.

    Rounded up to a bucket, but never above the crop length: crops themselves, the most
    frequent length of long utterances, need no padding.
    """
    return min(-(-num_samples // bucket) * bucket, max_samples)


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


def utterance_generator(seed: int, epoch: int, utt_id: str) -> np.random.Generator:
    """Return the generator of one utterance in one epoch, whoever loads it."""
    text = f"{seed} {epoch} {utt_id}".encode()
    return np.random.default_rng(
        int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    )


@dataclass
class LamerCollate:
    """Collate function of masked prediction.

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
    epoch: int
    train: bool

    def __post_init__(self) -> None:
        self.epoch = self.epoch if self.train else 0

    def __call__(
        self, batch: Collection[Utterance]
    ) -> tuple[list[str], dict[str, torch.Tensor]]:
        """Return utterance ids and padded tensors (see the model's ``forward``).

        Raises:
            RecipeError: Labels do not have one unit per frame.
        """
        names, waveforms, labels, masks, langs = [], [], [], [], []
        for utt_id, data in batch:
            generator = utterance_generator(self.seed, self.epoch, utt_id)
            speech = np.asarray(data["speech"], dtype=np.float32)
            text = np.asarray(data["text"], dtype=np.int64)
            frames = num_frames(len(speech))
            if len(text) != frames:
                raise RecipeError(
                    f"utterance {utt_id}: found {len(text)} units for {len(speech)} "
                    f"samples, expected {frames} ((n - 400) // 320 + 1); make the "
                    "labels anew"
                )
            if self.train and len(speech) > self.max_samples:
                last = (len(speech) - self.max_samples) // STRIDE
                start = int(generator.integers(last + 1))
                speech = speech[start * STRIDE :][: self.max_samples]
                text = text[start:][: num_frames(len(speech))]
            names.append(utt_id)
            waveforms.append(speech)
            labels.append(text)
            masks.append(
                span_mask(len(text), self.mask_prob, self.mask_length, generator)
            )
            if "lang" in data:
                langs.append(int(np.ravel(data["lang"])[0]))
        longest = max(map(len, waveforms))
        limit = self.max_samples if self.train else sys.maxsize
        padded = rounded_length(longest, limit, self.bucket)
        output = {
            "speech": _pad(waveforms, 0.0, padded),
            "speech_lengths": torch.tensor([len(w) for w in waveforms]),
            "text": _pad(labels, LABEL_PADDING, num_frames(padded)),
            "text_lengths": torch.tensor([len(t) for t in labels]),
            "mask_indices": _pad(masks, -1, max(1, *map(len, masks))),
            "mask_indices_lengths": torch.tensor([len(m) for m in masks]),
        }
        if langs:
            output["lang"] = torch.tensor(langs)
        return names, output


def _pad(rows: list[np.ndarray], value: float, length: int) -> torch.Tensor:
    padded = np.full((len(rows), length), value, dtype=rows[0].dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(padded)
