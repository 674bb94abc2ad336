"""Information between experts and languages, beside what chance gives."""

import math

import numpy as np
import pytest
import torch

from espnet2_lamer.analysis.routing import (
    RoutingStatistics,
    expert_language_information,
    mutual_information,
)
from espnet2_lamer.layers.feed_forward import Routing, RoutingRecord

LANGS = ["cmn"] * 20 + ["eng"] * 20


def test_private_experts_carry_all_information_and_chance_little():
    counts = [np.array([50, 0]) if x == "cmn" else np.array([0, 50]) for x in LANGS]
    found = expert_language_information(counts, LANGS, resamples=200)
    assert found.value == pytest.approx(math.log(2))
    assert found.interval == pytest.approx((math.log(2), math.log(2)))
    assert found.chance < 0.05
    assert found.p == pytest.approx(1 / 201)


def test_the_value_is_the_plug_in_estimate_over_all_frames():
    rng = np.random.default_rng(3)
    counts = list(rng.integers(0, 30, size=(40, 5)))
    found = expert_language_information(counts, LANGS, resamples=50)
    table = np.stack([np.sum(counts[:20], axis=0), np.sum(counts[20:], axis=0)])
    assert found.value == pytest.approx(mutual_information(table), rel=1e-9)
    assert found.interval[0] <= found.interval[1]


def test_an_expert_per_utterance_is_no_sign_of_languages():
    # 50 frames each would make this look certain, were frames independent.
    rng = np.random.default_rng(4)
    counts = [50 * np.eye(4, dtype=int)[rng.integers(4)] for _ in LANGS]
    found = expert_language_information(counts, LANGS, resamples=300)
    assert found.p > 0.05
    assert found.value < 4 * found.chance


def test_choices_are_counted_per_utterance_and_router():
    statistics = RoutingStatistics()
    for lang, expert in (("cmn", 0), ("eng", 2), ("eng", 2)):
        probs = torch.full((1, 6, 3), 0.1)
        probs[..., expert] = 0.8
        record = RoutingRecord()
        record.add(Routing(1, "ffn", probs, probs))
        half = torch.full((1, 6, 2), 0.5)
        record.add(Routing(3, "ffn", half, half))
        statistics.add(lang, record, 6)
    found = statistics.information()
    assert list(found) == [(1, "ffn"), (3, "ffn")]
    assert found[1, "ffn"].value == pytest.approx(
        math.log(3) - 2 / 3 * math.log(2)  # entropy of 1/3, 2/3
    )
    assert found[3, "ffn"].value == pytest.approx(0, abs=1e-12)
    assert found[3, "ffn"].p == 1
