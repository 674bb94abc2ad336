"""From the rows of a shard to teacher features, and how long the teacher took."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from espnet2_lamer.data.speech import SAMPLE_RATE, read_speech
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.units.teacher import Teacher


class Extractor:
    """Runs a teacher over utterances and keeps the time of its forward pass.

    Attributes:
        audio: Seconds of speech so far.
        forward: Seconds the teacher took for it.
    """

    def __init__(self, teacher: Teacher):
        self.teacher = teacher
        self.audio = 0.0
        self.forward = 0.0

    def __call__(self, rows: Sequence) -> Iterator[tuple[Sequence, Any]]:
        """Yield each row ``(utt, path, ...)`` with its features, in the given order.

        Features are tensors ``[T, D]`` on the teacher's device. On a GPU, utterances of
        equal length go through together; see :attr:`Teacher.batch_samples`.

        Raises:
            RecipeError: Audio is missing, broken or too short; the utterance is named.
        """
        if not self.teacher.batch_samples:
            for row in rows:
                yield row, self._forward([row], read_speech(*row[:2])[None])[0]
            return
        by_length: dict[int, list[int]] = defaultdict(list)
        samples = [read_speech(*row[:2]) for row in rows]
        for number, signal in enumerate(samples):
            by_length[len(signal)].append(number)
        features: dict[int, Any] = {}
        for length, numbers in sorted(by_length.items()):
            size = max(1, self.teacher.batch_samples // max(1, length))
            for start in range(0, len(numbers), size):
                batch = numbers[start : start + size]
                found = self._forward(
                    [rows[n] for n in batch], np.stack([samples[n] for n in batch])
                )
                features.update(zip(batch, found, strict=True))
        for number, row in enumerate(rows):
            yield row, features.pop(number)

    def _forward(self, rows: Sequence, samples: np.ndarray):
        started = time.perf_counter()
        try:
            features = self.teacher.forward_batch(samples)
        except RecipeError as error:
            utt, audio, *_ = rows[0]
            raise RecipeError(f"{audio}: utterance {utt!r}: {error}") from error
        self.forward += time.perf_counter() - started
        self.audio += samples.size / SAMPLE_RATE
        return features

    def facts(self) -> dict[str, float]:
        """What a shard's marker tells about speed."""
        return {"audio": self.audio, "forward": self.forward}
