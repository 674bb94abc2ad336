"""A teacher over utterances: read ahead, in batches where it may, what was stored."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from espnet2_lamer.constants import SAMPLE_RATE, STRIDE, num_frames
from espnet2_lamer.data.speech import count_samples, read_speech
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.units.stored import StoredFeatures
from espnet2_lamer.units.teacher import Teacher

# Threads that decode audio for a GPU, and batches that they are ahead of it.
READERS = 4
AHEAD = 3
# Frames of speech differ; by rounding alone, less than this share of their values.
_SPREAD = 1e-6
_FRAMES_THAT_DIFFER = 5


class Extractor:
    """Runs a teacher over utterances and keeps the time of its forward pass.

    On a GPU utterances share batches, see :attr:`Teacher.batch_samples`: those of
    similar lengths where the teacher may see padding, else those of equal length. What
    is in ``stored`` is read from there.
    """

    def __init__(self, teacher: Teacher, stored: StoredFeatures | None = None):
        self.teacher = teacher
        self.stored = stored
        self.audio = 0.0  # seconds of speech so far
        self.heard = 0.0  # those of them that the teacher heard
        self.forward = 0.0  # seconds that it took for them

    def __call__(self, rows: Sequence) -> Iterator[tuple[Sequence, Any]]:
        """Yield each row ``(utt, path, ...)`` with its features, in the given order.

        Features are tensors ``[T, D]`` on the teacher's device.

        Raises:
            RecipeError: Audio is missing, broken or too short, or the features are no
                use; the utterance is named.
        """
        new = [row for row in rows if not (self.stored and row[0] in self.stored)]
        computed = self._in_batches(new) if self.teacher.batch_samples else {}
        for row in rows:
            if self.stored and row[0] in self.stored:
                found = self.stored.frames(row[0])
                self.audio += len(found) * STRIDE / SAMPLE_RATE
                yield row, torch.tensor(found, device=self.teacher.device)
            elif row[0] in computed:
                yield row, computed.pop(row[0])
            else:
                yield row, self._forward([row], [read_speech(*row[:2])])[0]

    def facts(self) -> dict[str, float]:
        """What a shard's marker tells about speed."""
        return {"audio": self.audio, "heard": self.heard, "forward": self.forward}

    def _in_batches(self, rows: Sequence[Sequence]) -> dict[str, Any]:
        """Features of each utterance, by its id."""
        features: dict[str, Any] = {}
        for batch, samples in _read_ahead(self._batches(rows)):
            # Without padding by what was read: a header may be wrong.
            lengths = [0 if self.teacher.pads else len(signal) for signal in samples]
            for length in dict.fromkeys(lengths):
                together = [n for n, found in enumerate(lengths) if found == length]
                some = [batch[n] for n in together]
                found = self._forward(some, [samples[n] for n in together])
                features |= zip((row[0] for row in some), found, strict=True)
        return features

    def _batches(self, rows: Sequence[Sequence]) -> list[list]:
        """Rows of similar, or equal, lengths by their headers."""
        batches: list[list] = []
        limit, last = self.teacher.batch_samples, 0
        lengths = {row[0]: count_samples(*row[:2]) for row in rows}
        for row in sorted(rows, key=lambda row: lengths[row[0]]):
            length = lengths[row[0]]
            fits = batches and (len(batches[-1]) + 1) * length <= limit
            if fits and (self.teacher.pads or length == last):
                batches[-1].append(row)
            else:
                batches.append([row])
            last = length
        return batches

    def _forward(
        self, rows: Sequence[Sequence], samples: Sequence[np.ndarray]
    ) -> list[torch.Tensor]:
        started = time.perf_counter()
        lengths = [len(signal) for signal in samples]
        together = np.zeros((len(samples), max(lengths)), np.float32)
        for line, signal in zip(together, samples, strict=True):
            line[: len(signal)] = signal
        try:
            equal = min(lengths) == max(lengths)
            features = self.teacher.forward_batch(
                together, *([] if equal else [lengths])
            )
        except RecipeError as error:
            # Sorted by length in a batch: of a short one the first is the shortest.
            utt, audio, *_ = rows[int(np.argmin(lengths))]
            raise RecipeError(f"{audio}: utterance {utt!r}: {error}") from error
        frames = [num_frames(length) for length in lengths]
        for number, problem in unusable_features(features, frames).items():
            utt, audio, *_ = rows[number]
            name = self.teacher.identity["source"]
            raise RecipeError(
                f"{audio}: utterance {utt!r}: teacher {name} gives features that "
                f"{problem}; take the file out of the corpus, or if it sounds like "
                "speech use another --teacher or --teacher_layer"
            )
        self.forward += time.perf_counter() - started
        self.heard += sum(lengths) / SAMPLE_RATE
        self.audio += sum(lengths) / SAMPLE_RATE
        return [x[:n] for x, n in zip(features, frames, strict=True)]


def _read_ahead(batches: Sequence[list]) -> Iterator[tuple[list, list[np.ndarray]]]:
    """Yield each batch of rows with its samples, decoded by threads meanwhile."""
    coming: deque = deque()
    with ThreadPoolExecutor(READERS) as pool:
        for batch in batches:
            coming.append((batch, [pool.submit(read_speech, *r[:2]) for r in batch]))
            if len(coming) > AHEAD:
                batch, read = coming.popleft()
                yield batch, [future.result() for future in read]
        for batch, read in coming:
            yield batch, [future.result() for future in read]


def unusable_features(
    features: torch.Tensor, frames: Sequence[int] | None = None
) -> dict[int, str]:
    """Say of which utterances of a tensor ``[B, T, D]`` the features are no use.

    Distances to them are not numbers, or all of an utterance's ``frames [B]`` (None: T)
    are one: it would be a single unit.
    """
    frames = [features.shape[1]] * len(features) if frames is None else frames
    # What is padding counts as the first frame, which changes no answer.
    places = torch.arange(features.shape[1], device=features.device)
    real = places < torch.tensor(frames, device=features.device)[:, None]
    features = torch.where(real[..., None], features, features[:, :1])
    # NaN, infinity, and what squares to it.
    finite = features.square().sum((1, 2)).isfinite()
    spread = (features - features[:, :1]).abs().amax((1, 2))
    same = spread <= _SPREAD * features.abs().amax((1, 2))
    table = zip((~finite).tolist(), same.tolist(), frames, strict=True)
    problems = {}
    for number, (wild, still, count) in enumerate(table):
        if wild:
            problems[number] = "are not finite, or absurdly large"
        elif still and count >= _FRAMES_THAT_DIFFER:
            problems[number] = "are the same in all frames"
    return problems
