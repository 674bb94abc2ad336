"""The phone probe tells features that hold phones from features that do not."""

import time

import numpy as np
import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.metrics.probe import frame_phones, phone_probe

PHONES = list("abcdefgh")


def utterances(rng, prefix, number=10, frames=60, signal=10.0, directions=None):
    """Random phone strings and features: noise plus a direction per phone."""
    features, phones = {}, {}
    for i in range(number):
        spoken = rng.integers(len(PHONES), size=frames)
        noise = rng.normal(size=(frames, directions.shape[1]))
        features[f"{prefix}{i}"] = noise + signal * directions[spoken]
        phones[f"{prefix}{i}"] = [PHONES[p] for p in spoken]
    return features, phones


@pytest.fixture
def directions():
    return np.linalg.qr(np.random.default_rng(0).normal(size=(16, len(PHONES))))[0].T


def test_separable_phones_are_told_apart(directions):
    rng = np.random.default_rng(1)
    train = utterances(rng, "a", directions=directions)
    result = phone_probe(*train, *utterances(rng, "b", directions=directions))
    assert result.accuracy.value > 99.5
    assert (result.phones, result.train_frames) == (8, 600)
    assert result.accuracy.count == 10
    low, high = result.accuracy.interval
    assert low <= result.accuracy.value <= high


def test_features_without_phones_give_chance(directions):
    rng = np.random.default_rng(2)
    train = utterances(rng, "a", 30, directions=directions, signal=0)
    test = utterances(rng, "b", 30, directions=directions, signal=0)
    result = phone_probe(*train, *test)
    # Chance 12.5 %; standard error of 1800 frames 0.78.
    assert abs(result.accuracy.value - 12.5) < 4
    assert abs(result.majority - 12.5) < 4


def test_scale_and_shift_of_the_features_do_not_matter(directions):
    rng = np.random.default_rng(3)
    train = utterances(rng, "a", directions=directions, signal=2)
    test = utterances(rng, "b", directions=directions, signal=2)
    plain = phone_probe(*train, *test).accuracy
    scale = np.geomspace(1e-3, 1e3, 16)
    changed = [
        ({u: f * scale + 50 * scale for u, f in features.items()}, phones)
        for features, phones in (train, test)
    ]
    result = phone_probe(*changed[0], *changed[1]).accuracy
    assert result.value == pytest.approx(plain.value, abs=0.5)


def test_accuracy_is_the_share_of_frames_that_logistic_regression_gets_right():
    # One dimension, two phones at -1 and +1: the boundary is at 0.
    train = {"a": [[-1.0], [1.0], [-1.0], [1.0]]}
    test = {"b": [[-0.5], [0.5], [0.6]], "c": [[9.0]]}
    phones = {"b": ["x", "x", "y"], "c": ["unseen"]}
    result = phone_probe(train, {"a": ["x", "y", "x", "y"]}, test, phones)
    assert result.accuracy.parts == {"b": (2, 3), "c": (0, 1)}
    assert result.accuracy.value == 50.0
    assert result.majority == 50.0


def test_training_frames_are_capped_and_the_sample_is_seeded(directions):
    rng = np.random.default_rng(4)
    train = utterances(rng, "a", directions=directions, signal=1)
    test = utterances(rng, "b", directions=directions, signal=1)
    one, two = (phone_probe(*train, *test, max_frames=100, seed=5) for _ in range(2))
    assert one.train_frames == 100
    assert one == two


def test_frames_without_phone_and_utterances_without_phones_are_left_out(directions):
    rng = np.random.default_rng(5)
    features, phones = utterances(rng, "a", 3, directions=directions)
    phones["a0"] = [None, *phones["a0"][1:50]]
    del phones["a2"]
    result = phone_probe(features, phones, features, phones)
    assert result.train_frames == 49 + 60
    assert {u: n for u, (_, n) in result.accuracy.parts.items()} == {"a0": 49, "a1": 60}


def test_features_of_another_frame_rate_are_refused():
    features = {"a": np.zeros((50, 2))}
    with pytest.raises(RecipeError, match="'a' has 50 frames.*up to frame 100"):
        phone_probe(features, {"a": ["x", "y"] * 50}, features, {})


@pytest.mark.parametrize(
    ("phones", "message"),
    [({}, "no frame of the training"), ({"a": ["x", "x"]}, "only phone.*'x'")],
)
def test_phones_that_cannot_be_probed_are_refused(phones, message):
    features = {"a": np.zeros((2, 2))}
    with pytest.raises(RecipeError, match=message):
        phone_probe(features, phones, features, phones)


def test_a_frame_gets_the_phone_at_its_centre(tmp_path):
    # Centres of frames 0 to 4: 12.5, 32.5, 52.5, 72.5, 92.5 ms.
    ctm = tmp_path / "phones.ctm"
    ctm.write_text(
        "u 1 0.0125 0.020 a\nu 1 0.0525 0.0201 b\nu 1 0.080 0.012 short\n"
        "v 1 0.000 0.050 c 0.9\n"
    )
    assert frame_phones(ctm) == {"u": ["a", None, "b", "b"], "v": ["c", "c"]}


def test_every_frame_of_gapless_phones_has_the_phone_a_lookup_finds(tmp_path):
    rng = np.random.default_rng(6)
    ends = np.cumsum(rng.integers(20, 200, size=40)) / 1000
    starts = np.concatenate([[0], ends[:-1]])
    ctm = tmp_path / "phones.ctm"
    ctm.write_text(
        "".join(
            f"u 1 {s:.3f} {e - s:.3f} p{i}\n"
            for i, (s, e) in enumerate(zip(starts, ends, strict=True))
        )
    )
    frames = frame_phones(ctm)["u"]
    centres = (np.arange(len(frames)) * 320 + 200) / 16000
    found = np.searchsorted(ends, centres, side="right")
    assert frames == [f"p{i}" for i in found]


@pytest.mark.parametrize("line", ["u 1 0.0 0.1", "u 1 zero 0.1 a"])
def test_a_line_that_is_not_ctm_is_named(tmp_path, line):
    ctm = tmp_path / "phones.ctm"
    ctm.write_text(f"u 1 0.0 0.1 a\n{line}\n")
    with pytest.raises(RecipeError, match=r"phones.ctm:2: found 'u 1"):
        frame_phones(ctm)


@pytest.mark.slow
def test_60000_frames_of_192_dimensions_take_less_than_15_seconds():
    rng = np.random.default_rng(7)
    directions = rng.normal(size=(50, 192))
    spoken = rng.integers(50, size=60_000)
    features = 0.2 * directions[spoken] + rng.normal(size=(60_000, 192))
    phones = {"a": [f"p{p}" for p in spoken]}
    test = {"a": features[:100]}, {"a": phones["a"][:100]}
    start = time.process_time()
    phone_probe({"a": features}, phones, *test)
    assert time.process_time() - start < 15


def test_the_ridge_probe_is_least_squares_on_the_phones_indicators(directions):
    rng = np.random.default_rng(8)
    (train, train_phones), (test, test_phones) = (
        utterances(rng, name, 4, 50, 2.0, directions) for name in "ab"
    )
    found = phone_probe(train, train_phones, test, test_phones, ridge=0.5)
    x = np.concatenate([train[utt] for utt in sorted(train)])
    spoken = np.concatenate([train_phones[utt] for utt in sorted(train)])
    mean, deviation = x.mean(0), x.std(0)
    x = (x - mean) / deviation
    y = np.where(spoken[:, None] == np.array(PHONES), 1.0, -1.0)
    weights = np.linalg.solve(
        x.T @ x + 0.5 * len(x) * np.eye(16), x.T @ (y - y.mean(0))
    )
    for utt, features in test.items():
        scores = (features - mean) / deviation @ weights + y.mean(0)
        right = np.array(PHONES)[scores.argmax(1)] == test_phones[utt]
        assert found.accuracy.parts[utt] == (right.sum(), 50)
