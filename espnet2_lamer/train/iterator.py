"""One epoch's batches for this rank: planned, read, collated, in order."""

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from espnet2_lamer.constants import RECEPTIVE_FIELD
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.train.batching import LamerCollate, make_batches, rounded_length
from espnet2_lamer.train.console import hold_stop_signals, ignore_stop_signals
from espnet2_lamer.train.feature_cache import FeatureCache
from espnet2_lamer.train.updates import make_updates, split_update
from espnet2_lamer.train.utterances import Batches, Lengths

# Before an utterance's name: a frame of silence in its place. No name begins so.
STAND_IN = "\0"
# As well: what the cache of features has, in place of the audio.
STORED = "\1"


class _HeldLoader(DataLoader):
    """A loader whose processes no stop signal reaches, from their first moment on.

    A training that lost them could not end its update and save.
    """

    def __iter__(self) -> Iterator:
        with hold_stop_signals():
            return super().__iter__()


class CheckedDataset(Dataset):
    """Names the utterance when its data cannot be read; knows stand-ins.

    Of utterances whose features are in the ``cache`` no audio is read.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.cache: FeatureCache | None = None

    @cached_property
    def _beside(self) -> Any:
        return self.dataset.part({*self.dataset.names()} - {"speech"})

    def __getitem__(self, utt_id: str) -> Any:
        name = utt_id.removeprefix(STAND_IN).removeprefix(STORED)
        is_stored = utt_id.startswith(STORED)
        try:
            found = (self._beside if is_stored else self.dataset)[name]
        except Exception as error:
            raise RecipeError(
                f"utterance {name}: its audio or units cannot be read "
                f"({type(error).__name__}: {error}); repair it, or format the audio "
                "and make the labels anew, which checks every file. Training goes on "
                "from its last checkpoint when it is run again"
            ) from error
        if is_stored:
            return name, {**found[1], **self.cache.read(name)}
        if name == utt_id:
            return found
        # A frame has no masked frame, so nothing is learnt of it.
        _, data = found
        silence = {"speech": np.zeros(RECEPTIVE_FIELD), "text": data["text"][:1]}
        return utt_id, {**data, **silence}


@dataclass
class _Drawn(Dataset):
    """Utterances by draw and name, as ``(draw, item)``."""

    dataset: Dataset

    def __getitem__(self, key: tuple[int, str]) -> tuple[int, Any]:
        draw, name = key
        return draw, self.dataset[name]


@dataclass
class _CollateDraw:
    """Collates items of one draw."""

    make_collate: Callable[[int], LamerCollate]

    def __call__(self, items: Sequence[tuple[int, Any]]) -> Any:
        return self.make_collate(items[0][0])([item for _, item in items])


@dataclass(eq=False)
class BucketIterFactory(AbsIterFactory):
    """Builds one epoch's iterator; everything follows from the seed.

    ``dataset`` maps an utterance to ``(id, data)``; ``lengths`` and ``batch_bins``
    (padding and all ranks included) are in samples. Epochs of ``num_iters_per_epoch``
    iterations cut one stream of passes over the data, which does not depend on their
    length; without that number an epoch is a pass. Training shuffles, crops and masks
    anew in every pass: ``make_collate`` gets its number, from 1. An iteration is a
    batch, of which this process's share is ``batch[rank::world_size]``.

    With ``update_bins`` an iteration is an update of so many samples of all ranks (see
    :func:`~.updates.make_updates`), in one or more micro-batches of at most
    ``device_bins`` samples in this process. A rank for which an update has no utterance
    left gets a frame of silence.

    With a cache to :meth:`use` utterances have stored features in place of audio where
    these are what the batch gives: where it pads them no further than a batch of their
    own.
    """

    dataset: Any
    lengths: Mapping[str, int]
    batch_bins: int
    make_collate: Callable[[int], LamerCollate]
    num_iters_per_epoch: int | None
    seed: int
    train: bool
    num_workers: int = 0
    rank: int = 0
    world_size: int = 1
    update_bins: int | None = None
    device_bins: int | None = None
    pin_memory: bool = False

    def __post_init__(self) -> None:
        self.dataset = CheckedDataset(self.dataset)
        self.lengths = Lengths.of(self.lengths)
        self._plan: tuple[int, Batches] | None = None
        collate = self.make_collate(1)
        longest = collate.max_samples if self.train else sys.maxsize
        self._rounding = longest, collate.bucket

    def use(self, cache: FeatureCache) -> None:
        """Serve features from here on."""
        self.dataset.cache = cache

    @property
    def passes(self) -> float:
        """Passes over the data that an epoch makes."""
        wanted = self.num_iters_per_epoch
        return 1.0 if wanted is None else wanted / len(self._one_pass(0))

    def _one_pass(self, number: int) -> Batches:
        generator = np.random.default_rng([self.seed, number])
        if self.update_bins:
            return make_updates(
                self.lengths, self.update_bins, *self._rounding, generator
            )
        return make_batches(
            self.lengths,
            self.batch_bins,
            *self._rounding,
            generator,
            self.train,
            self.world_size,
        )

    def _epoch_batches(self, epoch: int) -> Batches:
        wanted = self.num_iters_per_epoch
        if wanted is None:
            return self._one_pass(epoch).drawn(epoch)
        # Epochs cut one endless stream of passes, so every utterance is seen equally
        # often whatever the epoch length is. All passes have the same batch count.
        number, skip = divmod(wanted * (epoch - 1), len(self._one_pass(0)))
        batches = self._one_pass(number).drawn(number + 1)[skip:]
        while len(batches) < wanted:
            number += 1
            batches += self._one_pass(number).drawn(number + 1)
        return batches[:wanted]

    def plan(self, epoch: int) -> Batches:
        """Return the iterations of ``epoch`` over all ranks; the latest plan is kept.

        They are batches, or whole updates.
        """
        if self._plan is None or self._plan[0] != epoch:
            self._plan = epoch, self._epoch_batches(epoch)
        return self._plan[1]

    def rounded(self, utts: np.ndarray) -> np.ndarray:
        """Samples that utterances (by number) take in a batch, their crops padded."""
        samples = self.lengths.samples[utts].astype(np.int64)
        return rounded_length(samples, *self._rounding)

    def is_stored(self, utts: np.ndarray, padded: int | np.ndarray) -> np.ndarray:
        """Which utterances (by number) have features in a batch of so many samples."""
        if self.dataset.cache is None:
            return np.zeros(len(utts), bool)
        return self.dataset.cache.has(utts) & (self.rounded(utts) == padded)

    def split(self, utts: np.ndarray) -> list[list[np.ndarray]]:
        """Return an iteration's utterances (by number) by micro-batch and rank."""
        if not self.update_bins:
            return [[utts[rank :: self.world_size] for rank in range(self.world_size)]]
        bins = self.device_bins or self.batch_bins
        cells = split_update(self.rounded(utts), self.world_size, bins)
        return [[utts[start:end] for start, end in row] for row in cells]

    def parts(self, utts: np.ndarray) -> list[list[str]]:
        """Return the names of an iteration that this rank loads, by micro-batch."""
        found = []
        for row in self.split(utts):
            own = row[self.rank]
            padded = self.rounded(own).max(initial=0)
            marks = [STORED if yes else "" for yes in self.is_stored(own, padded)]
            names = [
                mark + self.lengths.name(utt)
                for mark, utt in zip(marks, own.tolist(), strict=True)
            ]
            # The shortest is the quickest to read.
            found.append(names or [STAND_IN + self.lengths.name(int(utts[-1]))])
        return found

    def load(
        self, names: list[str], draw: int = 1
    ) -> tuple[list[str], dict[str, torch.Tensor]]:
        """Return a batch of these utterances in a draw, outside of any loader."""
        return self.make_collate(draw)([self.dataset[name] for name in names])

    def build_iter(self, epoch: int, start: int = 0) -> Iterator:
        """Return the batches of ``epoch`` (counted from 1) from iteration ``start``."""
        return ((names, batch) for names, batch, _ in self.iterate(epoch, start))

    def iterate(
        self, epoch: int, start: int = 0
    ) -> Iterator[tuple[list[str], dict[str, torch.Tensor], bool]]:
        """Yield batches as :meth:`build_iter`, and whether each ends an iteration."""
        plan = self.plan(epoch)[start:]
        batches, ends = itertools.tee(self._batches(plan))
        loader = _HeldLoader(
            _Drawn(self.dataset),
            batch_sampler=(names for names, _ in batches),
            collate_fn=_CollateDraw(self.make_collate),
            num_workers=self.num_workers,
            # A copy to the GPU that the host need not wait for.
            pin_memory=self.pin_memory,
            # In a process per GPU, which is spawned, loaders would be spawned as well
            # and import ESPnet anew in every epoch.
            multiprocessing_context="fork" if self.num_workers else None,
            worker_init_fn=ignore_stop_signals,
            # Of its own: a resumed epoch opens the loader once more, and must not draw
            # from the generator that dropout uses.
            generator=torch.Generator().manual_seed(self.seed),
        )
        name = f"epoch {epoch}, {'training' if self.train else 'validation'}"
        # Standard error itself may be redirected to a log while ESPnet trains.
        stream = sys.__stderr__
        hidden = self.rank > 0 or not stream.isatty()
        with tqdm(
            total=len(plan), desc=name, leave=False, file=stream, disable=hidden
        ) as bar:
            for (names, batch), (_, end) in zip(loader, ends, strict=False):
                yield names, batch, end
                bar.update(end)

    def _batches(self, plan: Batches) -> Iterator[tuple[list[tuple[int, str]], bool]]:
        """Draw and names of this rank's batches, and which end an iteration."""
        for iteration, draw in enumerate(plan.draws.tolist()):
            parts = self.parts(plan.numbers(iteration))
            for number, names in enumerate(parts, 1):
                yield [(draw, name) for name in names], number == len(parts)
