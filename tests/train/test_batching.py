"""Batches: every utterance once, never too big, few shapes, equal shares of epochs."""

import multiprocessing
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from espnet2_lamer.train.batching import (
    LamerCollate,
    make_batches,
    rounded_length,
)
from espnet2_lamer.train.iterator import BucketIterFactory

BUCKET = 1600
# No multiple of the bucket, as in the paper's setting.
CROP = 7900
BINS = 30000


def some_lengths(count=60, low=800, high=20000, seed=0):
    samples = np.random.default_rng(seed).integers(low, high, count)
    return {f"utt{n:02d}": int(s) for n, s in enumerate(samples)}


def padded(names, lengths):
    """Samples that a batch occupies: padded to the bucket, at most to the crop."""
    longest = max(min(lengths[name], CROP) for name in names)
    return len(names) * min(-(-longest // BUCKET) * BUCKET, CROP)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_each_utterance_occurs_once_and_no_batch_exceeds_batch_bins(shuffle, seed):
    lengths = some_lengths(seed=seed)
    rng = np.random.default_rng(seed)
    batches = make_batches(lengths, BINS, CROP, BUCKET, rng, shuffle)
    assert sorted(name for batch in batches for name in batch) == sorted(lengths)
    assert all(padded(batch, lengths) <= BINS for batch in batches)


def test_an_utterance_longer_than_batch_bins_stands_alone():
    lengths = {"long": 90000, "short": 1600}
    rng = np.random.default_rng(0)
    batches = make_batches(lengths, BINS, 100000, BUCKET, rng, False)
    assert batches == [["long"], ["short"]]


@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("count", [5, 6, 7, 11, 60])
def test_every_batch_has_an_utterance_for_each_rank(ranks, count):
    for seed in range(5):
        lengths = some_lengths(count, seed=seed)
        rng = np.random.default_rng(seed)
        batches = make_batches(lengths, BINS, CROP, BUCKET, rng, True, ranks)
        assert min(map(len, batches)) >= ranks
        assert sorted(name for batch in batches for name in batch) == sorted(lengths)


def test_fewer_utterances_than_ranks_are_refused():
    with pytest.raises(ValueError, match="found 2 utterances for 3 ranks"):
        make_batches(
            some_lengths(2), BINS, CROP, BUCKET, np.random.default_rng(0), True, 3
        )


def test_shapes_are_few():
    lengths = some_lengths(300)
    batches = make_batches(lengths, BINS, CROP, BUCKET, np.random.default_rng(0), True)
    shapes = {(len(b), padded(b, lengths)) for b in batches}
    # One per rounded length, and the last batch.
    assert len(shapes) <= CROP // BUCKET + 2
    assert len(batches) > 2 * len(shapes)


def test_order_depends_on_the_generator_alone():
    lengths = some_lengths()

    def make(seed, order):
        rng = np.random.default_rng(seed)
        table = {name: lengths[name] for name in order}
        return make_batches(table, BINS, CROP, BUCKET, rng, True)

    assert make(0, sorted(lengths)) == make(0, sorted(lengths, reverse=True))
    assert make(0, lengths) != make(1, lengths)


def test_lengths_are_rounded_up_but_not_above_the_crop():
    assert rounded_length(1, CROP, BUCKET) == 1600
    assert rounded_length(1600, CROP, BUCKET) == 1600
    assert rounded_length(1601, CROP, BUCKET) == 3200
    assert rounded_length(6401, CROP, BUCKET) == 7900
    assert rounded_length(99999, CROP, BUCKET) == 7900


def test_crops_of_the_papers_length_are_not_padded():
    """250000 samples in buckets of a second: 16 rows of 15.625 s, not of 16 s."""
    lengths = {f"utt{n:02d}": 250_000 + 1000 * n for n in range(32)}

    def make_collate(epoch):
        return LamerCollate(250_000, 16_000, 0.8, 10, 0, epoch, True)

    make = BucketIterFactory(
        Zeros(lengths), lengths, 16 * 250_000, make_collate, None, 0, True
    )
    for names, batch in make.build_iter(1):
        assert len(names) == 16
        assert batch["speech"].shape == (16, 250_000)
        assert (batch["speech_lengths"] == 250_000).all()
        assert batch["text"].shape == (16, 781)


class Zeros:
    """Dataset of silent utterances with one unit per frame."""

    def __init__(self, lengths):
        self.lengths = lengths

    def __getitem__(self, utt_id):
        samples = self.lengths[utt_id]
        frames = (samples - 400) // 320 + 1
        return utt_id, {"speech": np.zeros(samples), "text": np.zeros(frames)}


def factory(lengths, iters, train=True, **options):
    def make_collate(epoch):
        return LamerCollate(CROP, BUCKET, 0.8, 10, 0, epoch, train)

    return BucketIterFactory(
        Zeros(lengths), lengths, BINS, make_collate, iters, 0, train, **options
    )


def ids(iterator):
    return [names for names, _ in iterator]


@pytest.mark.parametrize("iters", [5, 7, 100])
def test_epochs_of_any_length_see_every_utterance_equally_often(iters):
    lengths = some_lengths()
    make = factory(lengths, iters)
    passes = len(ids(factory(lengths, None).build_iter(1)))
    epochs = passes * 2  # in batches: a whole number of passes
    counts = Counter()
    for epoch in range(1, epochs + 1):
        batches = make._epoch_batches(epoch)
        assert len(batches) == iters
        counts.update(name for batch in batches for name in batch)
    assert set(counts) == set(lengths)
    assert set(counts.values()) == {epochs * iters // passes}


def test_the_stream_of_batches_does_not_depend_on_the_epochs_length():
    lengths = some_lengths()

    def stream(iters, count):
        make = factory(lengths, iters)
        batches = (b for e in range(1, 99) for b in make._epoch_batches(e))
        return list(islice(batches, count))

    assert stream(5, 60) == stream(7, 60) == stream(60, 60)


class Counted(Zeros):
    """Its units count the frames, so a crop shows where it begins."""

    def __getitem__(self, utt_id):
        name, data = super().__getitem__(utt_id)
        return name, {**data, "text": np.arange(len(data["text"]))}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("update_bins", [None, 2 * BINS])
def test_every_pass_draws_crops_and_masks_anew_however_long_an_epoch_is(
    update_bins, workers
):
    lengths = {name: 2 * n for name, n in some_lengths().items()}

    def drawn(names, batch):
        for row in zip(names, batch["text"], batch["mask_indices"], strict=True):
            name, units, mask = row
            yield name, int(units[0]), tuple(mask[mask >= 0].tolist())

    def stream(iters, epochs):
        make = factory(lengths, iters, update_bins=update_bins, num_workers=workers)
        make.dataset.dataset = Counted(lengths)
        for epoch in range(1, epochs + 1):
            for loaded in make.build_iter(epoch):
                yield from drawn(*loaded)

    long, short = list(stream(60, 1)), list(stream(6, 10))
    assert long == short
    heard = Counter()
    for name, *rest in long:
        heard[name] += 1
        alone = LamerCollate(CROP, BUCKET, 0.8, 10, 0, heard[name], True)
        assert next(drawn(*alone([Counted(lengths)[name]]))) == (name, *rest)
    assert min(heard.values()) > 2


def test_an_epoch_without_a_number_of_iterations_is_one_pass():
    lengths = some_lengths()
    make = factory(lengths, None)
    first, second = ids(make.build_iter(1)), ids(make.build_iter(2))
    assert sorted(n for b in first for n in b) == sorted(lengths)
    assert first != second
    assert ids(make.build_iter(1)) == first


def test_validation_is_neither_shuffled_nor_cropped():
    lengths = some_lengths()
    make = factory(lengths, None, train=False)
    assert ids(make.build_iter(1)) == ids(make.build_iter(2))
    for names, batch in make.build_iter(1):
        assert batch["speech_lengths"].tolist() == [lengths[n] for n in names]
        assert batch["speech"].shape[1] % BUCKET == 0
        assert len(names) == 1 or batch["speech"].numel() <= BINS


def test_training_batches_stay_within_batch_bins():
    for names, batch in factory(some_lengths(), None).build_iter(1):
        assert batch["speech"].numel() <= BINS
        assert batch["speech"].shape[0] == len(names)


def test_loaders_are_forked_in_processes_that_were_spawned():
    class Local(Zeros):
        """Cannot be pickled, as a spawned loader asks."""

    lengths = some_lengths(8)
    expected = ids(factory(lengths, None).build_iter(1))
    make = factory(lengths, None, num_workers=1)
    make.dataset.dataset = Local(lengths)
    before = multiprocessing.get_start_method(allow_none=True)
    # What a spawned process finds; loaders of its kind import everything anew.
    multiprocessing.set_start_method("spawn", force=True)
    try:
        found = ids(make.build_iter(1))
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert found == expected


def test_ranks_share_every_batch_without_overlap():
    lengths = some_lengths()
    whole = ids(factory(lengths, 6).build_iter(1))
    shares = [
        ids(factory(lengths, 6, rank=rank, world_size=2).build_iter(1))
        for rank in (0, 1)
    ]
    for batch, zero, one in zip(whole, *shares, strict=True):
        assert sorted(zero + one) == sorted(batch)
