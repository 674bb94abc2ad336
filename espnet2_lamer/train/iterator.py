"""ESPnet iterator factory over length-bucketed batches."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.train.batching import make_batches
from espnet2_lamer.train.collate import LamerCollate
from espnet2_lamer.train.signals import hold_stop_signals, ignore_stop_signals


class _HeldLoader(DataLoader):
    """A loader whose processes no stop signal reaches, from their first moment on.

    Slurm signals every process of a step: a training that lost the ones that load audio
    could not end its update and save.
    """

    def __iter__(self) -> Iterator:
        """Start the processes."""
        with hold_stop_signals():
            return super().__iter__()


class CheckedDataset(Dataset):
    """Names the utterance when its data cannot be read.

    Args:
        dataset: Maps an utterance id to ``(id, data)``.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, utt_id: str) -> Any:
        """Read one utterance.

        Raises:
            RecipeError: It cannot be read.
        """
        try:
            return self.dataset[utt_id]
        except Exception as error:
            raise RecipeError(
                f"utterance {utt_id}: its audio or units cannot be read "
                f"({type(error).__name__}: {error}); repair it, or run stages 2 and 5 "
                "again, which check every file. Training goes on from its last "
                "checkpoint when it is run again"
            ) from error


class BucketIterFactory(AbsIterFactory):
    """Builds one epoch's iterator; everything follows from (seed, epoch).

    Args:
        dataset: Maps an utterance id to its data.
        lengths: Samples per utterance.
        batch_bins: Samples per batch, padding included, over all ranks.
        make_collate: Called with the epoch.
        num_iters_per_epoch: Batches per epoch; ``None`` means one pass over the data.
        seed: Seed of the order.
        train: Shuffle and crop.
        num_workers: Loader processes.
        rank: This process's share of every batch is ``batch[rank::world_size]``.
        world_size: Number of processes.
    """

    def __init__(
        self,
        dataset: object,
        lengths: dict[str, int],
        batch_bins: int,
        make_collate: Callable[[int], LamerCollate],
        num_iters_per_epoch: int | None,
        seed: int,
        train: bool,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.dataset = CheckedDataset(dataset)
        self.lengths = lengths
        self.batch_bins = batch_bins
        self.make_collate = make_collate
        self.num_iters_per_epoch = num_iters_per_epoch
        self.seed = seed
        self.train = train
        self.num_workers = num_workers
        self.rank = rank
        self.world_size = world_size
        self._plan: tuple[tuple[int, bool], list[list[str]]] | None = None

    def _one_pass(self, number: int, shuffle: bool) -> list[list[str]]:
        collate = self.make_collate(1)
        return make_batches(
            self.lengths,
            self.batch_bins,
            collate.max_samples if self.train else sys.maxsize,
            collate.bucket,
            np.random.default_rng([self.seed, number]),
            shuffle,
            self.world_size,
        )

    def _epoch_batches(self, epoch: int, shuffle: bool) -> list[list[str]]:
        wanted = self.num_iters_per_epoch
        if wanted is None:
            return self._one_pass(epoch, shuffle)
        # Epochs cut one endless stream of passes, so every utterance is seen equally
        # often whatever the epoch length is. All passes have the same batch count.
        first = wanted * (epoch - 1)
        size = len(self._one_pass(0, shuffle))
        batches: list[list[str]] = []
        number, skip = divmod(first, size)
        while len(batches) < wanted:
            batches += self._one_pass(number, shuffle)[skip:]
            number, skip = number + 1, 0
        return batches[:wanted]

    def plan(self, epoch: int, shuffle: bool | None = None) -> list[list[str]]:
        """Return the batches of ``epoch`` over all ranks; the latest plan is kept."""
        key = epoch, self.train if shuffle is None else shuffle
        if self._plan is None or self._plan[0] != key:
            self._plan = key, self._epoch_batches(*key)
        return self._plan[1]

    def load(
        self, batch: list[str], epoch: int
    ) -> tuple[list[str], dict[str, torch.Tensor]]:
        """Return this rank's part of one batch of ``epoch``, outside of any loader."""
        utterances = [self.dataset[utt] for utt in batch[self.rank :: self.world_size]]
        return self.make_collate(epoch)(utterances)

    def build_iter(
        self, epoch: int, shuffle: bool | None = None, start: int = 0
    ) -> Iterator:
        """Return the batches of ``epoch`` (counted from 1) from number ``start`` on."""
        batches = self.plan(epoch, shuffle)[start:]
        if self.world_size > 1:
            # Every batch has an utterance for each rank, see make_batches.
            batches = [b[self.rank :: self.world_size] for b in batches]
        loader = _HeldLoader(
            self.dataset,
            batch_sampler=batches,
            collate_fn=self.make_collate(epoch),
            num_workers=self.num_workers,
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
        return tqdm(
            loader,
            desc=name,
            leave=False,
            file=sys.__stderr__,
            disable=self.rank > 0 or not sys.__stderr__.isatty(),
        )
