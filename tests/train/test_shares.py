"""Shares of an epoch's batches, against the batches that the loader really makes."""

import random
from types import SimpleNamespace

import numpy as np
import pytest

from espnet2_lamer.train.batching import LamerCollate
from espnet2_lamer.train.iterator import BucketIterFactory
from espnet2_lamer.train.shares import measure_shares, span
from espnet2_lamer.train.utterances import Batches, Lengths

CROP, BUCKET, BINS = 9600, 1600, 40000


class Zeros:
    def __init__(self, lengths):
        self.lengths = lengths

    def __getitem__(self, utt_id):
        samples = self.lengths[utt_id]
        frames = (samples - 400) // 320 + 1
        return utt_id, {"speech": np.zeros(samples), "text": np.zeros(frames)}


@pytest.fixture
def data():
    rng = random.Random(3)
    lengths = {f"utt{n}": rng.randrange(800, 14000) for n in range(70)}
    return lengths, {utt: rng.choice(["cmn", "yue"]) for utt in lengths}


def factory(lengths, iters=None, rank=0, ranks=1):
    def make_collate(epoch):
        return LamerCollate(CROP, BUCKET, 0.8, 10, 0, epoch, True)

    return BucketIterFactory(
        Zeros(lengths),
        lengths,
        BINS,
        make_collate,
        iters,
        0,
        True,
        rank=rank,
        world_size=ranks,
    )


@pytest.mark.parametrize(("iters", "ranks"), [(None, 1), (None, 2), (9, 1), (33, 3)])
def test_shares_are_those_of_the_tensors_that_the_ranks_get(data, iters, ranks):
    lengths, languages = data
    made = factory(lengths, iters, ranks=ranks)
    found = measure_shares(made, 2, languages)
    batches = utterances = 0
    real = padded = whole = largest = 0
    by_language = dict.fromkeys(["cmn", "yue"], 0)
    for rank in range(ranks):
        own = factory(lengths, iters, rank, ranks).build_iter(2)
        for names, batch in own:
            batches += 1
            utterances += len(names)
            real += batch["speech_lengths"].sum().item()
            padded += batch["speech"].numel()
            largest = max(largest, batch["speech"].numel())
            whole += sum(lengths[utt] for utt in names)
            for utt, samples in zip(names, batch["speech_lengths"], strict=True):
                by_language[languages[utt]] += samples.item()
    assert found.batches * ranks == batches
    assert found.utterances == utterances
    assert found.passes == pytest.approx(utterances / len(lengths))
    assert found.audio == pytest.approx(real / 16000)
    assert found.padding_share == pytest.approx(1 - real / padded)
    assert found.crop_loss == pytest.approx(1 - real / whole) and found.crop_loss > 0
    assert found.largest == pytest.approx(largest / 16000)
    assert found.data == pytest.approx(sum(lengths.values()) / 16000)
    for language, samples in by_language.items():
        assert found.languages[language] == pytest.approx(samples / 16000)
        data_samples = sum(n for u, n in lengths.items() if languages[u] == language)
        assert found.data_languages[language] == pytest.approx(data_samples / 16000)


def test_languages_and_replay_are_said_beside_their_share_of_the_data():
    lengths = Lengths.of({"a": 16000, "b": 16000 * 60, "c": 16000 * 59})
    batches = Batches(lengths, *map(np.array, ([0, 1], [0, 1], [1, 2])))
    languages = {"a": "cmn", "b": "eng", "c": "yue"}
    uncut = SimpleNamespace(max_samples=10**9, bucket=1)
    made = SimpleNamespace(
        lengths=lengths,
        world_size=1,
        update_bins=None,
        plan=lambda epoch: batches,
        is_stored=lambda utts, padded: np.zeros(len(utts), bool),
        make_collate=lambda epoch: uncut,
    )
    shares = measure_shares(made, 1, languages)
    assert shares.language_line(["eng"]) == (
        "cmn 0.02 min (1.6 %, data 0.8 %); eng 1.00 min (98.4 %, data 50.0 %); "
        "yue 0.00 min (0.0 %, data 49.2 %); replay (eng) 98.4 %, data 50.0 %"
    )
    assert "replay" not in shares.language_line()
    assert span(5400) == "1.50 h"


def test_a_plan_is_what_the_loader_gives_and_is_made_once(data, monkeypatch):
    lengths, _ = data
    made = factory(lengths, 12)
    calls = []
    real = made._epoch_batches
    monkeypatch.setattr(made, "_epoch_batches", lambda *a: calls.append(a) or real(*a))
    plan = made.plan(3)
    assert [names for names, _ in made.build_iter(3)] == plan
    assert [names for names, _ in made.build_iter(3, start=5)] == plan[5:]
    assert calls == [(3,)]
    assert made.plan(4) != plan
