"""Utterances by number are those by name, and ten million would fit."""

import tracemalloc

import numpy as np
import pytest

from espnet2_lamer.train.batching import make_batches
from espnet2_lamer.train.utterances import Batches, Languages, Lengths


def table(path, count, sort=True):
    """Write a shape file; return its lengths by name."""
    samples = np.random.default_rng(0).integers(16_000, 480_000, count).tolist()
    lengths = {f"clip{n * 7919 % count:07d}": samples[n] for n in range(count)}
    names = sorted(lengths) if sort else list(lengths)
    path.write_text("".join(f"{name} {lengths[name]},80\n" for name in names))
    return lengths


@pytest.mark.parametrize("sort", [True, False])
def test_lengths_of_a_file_are_its_numbers_by_name(tmp_path, sort):
    expected = table(tmp_path / "shape", 300, sort)
    lengths = Lengths.read(tmp_path / "shape")
    assert lengths == expected and list(lengths) == sorted(expected)
    names = [*reversed(sorted(expected)), "nobody"]
    numbers = lengths.numbers([name.encode() for name in names])
    assert numbers.tolist() == [*range(299, -1, -1), -1]
    keep = np.arange(300) % 3 == 0
    some = lengths.only(keep).only(np.arange(100) % 2 == 0)
    assert some == {name: expected[name] for name in sorted(expected)[::6]}
    with pytest.raises(KeyError):
        some[lengths.name(1)]


def test_batches_of_a_file_are_those_of_a_dict(tmp_path):
    expected = table(tmp_path / "shape", 500)

    def batches(lengths):
        rng = np.random.default_rng(3)
        return make_batches(lengths, 10**6, 250_000, 4000, rng, True, 2)

    found = batches(Lengths.read(tmp_path / "shape"))
    assert found == batches(expected)
    numbers = [[*map(found.lengths.name, found.numbers(n))] for n in range(len(found))]
    assert numbers == [*found]
    assert (found[:3] + found[3:]) == found


def test_batches_are_drawn_as_ever():
    """What earlier versions drew: a training that goes on meets the same batches."""
    lengths = {f"u{n}": 4000 * (1 + n % 5) for n in range(12)}
    rng = np.random.default_rng([7, 2])
    names = sorted(lengths)
    names = [names[i] for i in rng.permutation(12)]
    names.sort(key=lambda name: -lengths[name])
    batches: list[list[str]] = []
    for name in names:
        if not batches or len(batches[-1]) >= 40_000 // lengths[batches[-1][0]]:
            batches.append([])
        batches[-1].append(name)
    expected = [batches[i] for i in rng.permutation(len(batches))]
    rng = np.random.default_rng([7, 2])
    assert make_batches(lengths, 40_000, 20_000, 4000, rng, True) == expected


def test_languages_of_a_file_are_its_values(tmp_path):
    lengths = Lengths.of({"a": 1, "b": 2, "c": 3})
    path = tmp_path / "utt2lang"
    path.write_text("b cmn\nz deu\na eng\n")
    found = Languages.read(path, lengths)
    assert [found.names[code] for code in found.codes[:2]] == ["eng", "cmn"]
    assert found.codes[2] == -1
    given = Languages.of({"a": "x", "b": "y", "c": "x"}, lengths)
    assert (given.codes.tolist(), given.names) == ([0, 1, 0], ["x", "y"])


def test_a_plan_takes_some_bytes_an_utterance(tmp_path):
    count = 20_000
    table(tmp_path / "shape", count)
    tracemalloc.start()
    lengths = Lengths.read(tmp_path / "shape")
    rng = np.random.default_rng(0)
    plan = make_batches(lengths, 16 * 250_000, 250_000, 4000, rng, True)
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(plan, Batches) and len(plan) > 100
    # 8 where a line begins, 12 of the index, 4 of lengths, 4 of the plan.
    assert now < 40 * count and peak < 100 * count
