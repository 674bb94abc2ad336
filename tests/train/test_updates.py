"""An update is the same audio on any number of ranks and in any number of parts."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from espnet2_lamer.train.batching import LamerCollate
from espnet2_lamer.train.iterator import STAND_IN, BucketIterFactory
from espnet2_lamer.train.shares import measure_shares
from espnet2_lamer.train.updates import make_updates, split_update

RATE = 16_000
RANKS = (1, 2, 4, 8)


def speech(kind, count, seed=0):
    """Random lengths in samples, 2 to 30 s."""
    rng = np.random.default_rng(seed)
    seconds = {
        "short": lambda: rng.uniform(2, 5, count),
        "long": lambda: rng.uniform(16, 30, count),
        "all": lambda: np.clip(rng.lognormal(np.log(9), 0.6, count), 2, 30),
        "two corpora": lambda: (
            rng.choice([3.0, 14.0], count) + rng.normal(0, 0.3, count)
        ),
    }[kind]()
    return {f"utt{n:05d}": int(s * RATE) for n, s in enumerate(seconds)}


class Silence:
    def __init__(self, lengths):
        self.lengths = lengths

    def __getitem__(self, utt):
        frames = (self.lengths[utt] - 400) // 320 + 1
        data = {"speech": np.zeros(self.lengths[utt]), "text": np.zeros(frames)}
        return utt, data | {"lang": np.array([1])}


def factory(lengths, update_bins, device_bins, rank=0, ranks=1, iters=None, seed=0):
    def make_collate(epoch):
        return LamerCollate(250_000, 4000, 0.8, 10, seed, epoch, True)

    return BucketIterFactory(
        Silence(lengths),
        lengths,
        900_000,
        make_collate,
        iters,
        seed,
        True,
        rank=rank,
        world_size=ranks,
        update_bins=update_bins,
        device_bins=device_bins,
    )


# Configs: the paper preset's, a smaller and a larger update; what a device holds.
CONFIGS = [
    ("all", 6000, 3_600_000, 900_000),
    ("all", 6000, 3_600_000, 100_000_000),
    ("long", 2000, 3_600_000, 3_600_000),
    ("short", 9000, 3_600_000, 600_000),
    ("two corpora", 6000, 3_600_000, 1_000_000),
    ("all", 3000, 2_000_000, 250_000),
    ("all", 12000, 28_800_000, 5_000_000),
]


@pytest.mark.parametrize(("kind", "count", "update_bins", "bins"), CONFIGS)
def test_updates_are_the_configured_audio_on_1_2_4_and_8_ranks(
    kind, count, update_bins, bins
):
    lengths = speech(kind, count)
    audio, utterances = {}, {}
    for ranks in RANKS:
        made = factory(lengths, update_bins, bins, ranks=ranks)
        shares = measure_shares(made, 1)
        audio[ranks] = (shares.audio + shares.padding) / shares.batches
        utterances[ranks] = [
            sorted(utt for row in made.split(numbers) for part in row for utt in part)
            for numbers in map(made.plan(1).numbers, range(shares.batches))
        ]
        # Padding included, as the option counts.
        assert audio[ranks] * RATE == pytest.approx(update_bins, rel=0.02)
        assert audio[ranks] == pytest.approx(audio[1], rel=0.02)
        assert utterances[ranks] == utterances[1]
    whole = [utt for update in utterances[1] for utt in update]
    assert sorted(whole) == list(range(count))


@pytest.mark.parametrize("kind", ["all", "long", "short"])
def test_no_update_is_further_off_than_one_utterance(kind):
    lengths = speech(kind, 3000)
    rng = np.random.default_rng(1)
    batches = make_updates(lengths, 3_600_000, 250_000, 4000, rng)
    samples = [batches.lengths.samples[batches.numbers(n)] for n in range(len(batches))]
    sums = [np.minimum(-(-s // 4000) * 4000, 250_000).sum() for s in samples]
    mean = sum(sums) / len(sums)
    assert max(abs(s - mean) for s in sums) <= 250_000


@pytest.mark.parametrize("ranks", [*RANKS, 3, 16])
@pytest.mark.parametrize("device_bins", [100_000, 500_000, 900_000, 10**9])
def test_each_part_fits_and_ranks_have_nearly_equal_parts(ranks, device_bins):
    made = factory(speech("all", 1500), 3_600_000, device_bins, ranks=ranks)
    for number in range(len(made.plan(1))):
        utts = made.plan(1).numbers(number)
        rounded = made.rounded(utts)
        rows = split_update(rounded, ranks, device_bins)
        covered = sorted(i for row in rows for cell in row for i in range(*cell))
        assert covered == list(range(len(utts)))
        assert {len(row) for row in rows} == {ranks}
        audio = [
            [
                (end - start) * int(rounded[start]) if end > start else 0
                for start, end in row
            ]
            for row in rows
        ]
        longest = int(rounded.max())
        assert max(map(max, audio)) <= max(device_bins, longest)
        # As few micro-batches as a rank's share needs, but for what does not fill up.
        least = -(-int(rounded.sum()) // (ranks * max(device_bins, longest)))
        cells = sum(map(bool, (a for row in audio for a in row)))
        assert least <= len(rows) <= 2 * least
        assert cells == min(len(utts), ranks * len(rows))
        for row in audio:
            # Nobody has a row of utterances more than another.
            assert max(row) - min(row) <= 2 * longest
        totals = np.sum(audio, axis=0)
        if len(utts) >= 2 * ranks * len(rows):
            assert totals.min() > 0.5 * totals.mean()


def test_a_cut_with_a_smaller_largest_part_does_not_exist():
    """Against all ways to cut a few utterances into that many ranges."""
    from itertools import combinations

    rng = np.random.default_rng(3)
    for _ in range(200):
        count = int(rng.integers(3, 9))
        rounded = np.sort(rng.integers(1, 20, count) * 4000)[::-1].copy()
        ranks, bins = int(rng.integers(1, 4)), int(rng.integers(4000, 200_000))
        rows = split_update(rounded, ranks, bins)

        def cost(bounds, rounded=rounded):
            return max((b - a) * rounded[a] for a, b in pairwise(bounds))

        pieces = min(len(rows) * ranks, count)
        best = min(
            cost((0, *inner, count))
            for inner in combinations(range(1, count), pieces - 1)
        )
        found = max((b - a) * rounded[a] for row in rows for a, b in row if b > a)
        assert found == best


def batches_of(made, epoch=1, start=0):
    """Names of each update, and each of its batches' names and size."""
    updates, parts = [], []
    for names, batch, end in made.iterate(epoch, start):
        parts.append((names, batch["speech"].numel()))
        if end:
            updates.append(parts)
            parts = []
    assert not parts
    return updates


@pytest.mark.parametrize("ranks", [2, 4])
def test_what_ranks_load_together_is_what_one_loads(ranks):
    lengths = speech("all", 120)
    one = batches_of(factory(lengths, 3_600_000, 900_000, iters=5), epoch=2)
    made = [
        factory(lengths, 3_600_000, 600_000, rank, ranks, iters=5)
        for rank in range(ranks)
    ]
    found = [batches_of(part, epoch=2) for part in made]
    assert len(one) == 5
    for number, update in enumerate(one):
        names = Counter(n for parts, _ in update for n in parts)
        assert names == Counter(
            n for rank in found for parts, _ in rank[number] for n in parts
        )
        # All ranks have as many micro-batches: they wait for each other in each.
        assert len({len(rank[number]) for rank in found}) == 1
        assert max(size for rank in found for _, size in rank[number]) <= 600_000
    # From the middle of an epoch the same ones go on.
    for part, whole in zip(made, found, strict=True):
        assert batches_of(part, epoch=2, start=3) == whole[3:]


@pytest.mark.parametrize("iters", [3, 8, 20])
def test_epochs_of_any_length_see_every_utterance_equally_often(iters):
    lengths = speech("all", 80)
    made = factory(lengths, 1_600_000, 10**9, iters=iters)
    passes = len(factory(lengths, 1_600_000, 10**9).plan(1))
    counts = Counter()
    for epoch in range(1, passes + 1):
        assert len(made.plan(epoch)) == iters
        counts.update(utt for update in made.plan(epoch) for utt in update)
    assert set(counts) == set(lengths) and set(counts.values()) == {iters}


def test_updates_mix_what_the_seed_says():
    lengths = speech("all", 500)
    one, same, other = (
        [*factory(lengths, 3_600_000, None, seed=seed).plan(1)] for seed in (0, 0, 1)
    )
    assert one == same
    assert {frozenset(x) for x in one} != {frozenset(x) for x in other}


def test_a_rank_without_an_utterance_gets_a_frame_of_silence():
    lengths = {f"utt{n}": 160_000 + n for n in range(3)}
    made = [factory(lengths, 480_000, 10**9, rank, 4) for rank in range(4)]
    found = [list(part.iterate(1)) for part in made]
    loaded = [(names, batch) for ((names, batch, end),) in found]
    real = [names for names, _ in loaded if not names[0].startswith(STAND_IN)]
    assert sorted(n for names in real for n in names) == sorted(lengths)
    ((names, batch),) = [x for x in loaded if x[0][0].startswith(STAND_IN)]
    assert names[0].removeprefix(STAND_IN) in lengths
    assert batch["speech_lengths"].tolist() == [400] and not batch["speech"].any()
    assert batch["text_lengths"].tolist() == [1] and batch["lang"].tolist() == [1]
    # Nothing is masked, so nothing is learnt.
    assert (batch["mask_indices"] == -1).all()
    shares = measure_shares(made[0], 1)
    assert (shares.idle, shares.unfair, shares.utterances) == (1, 1, 3)
