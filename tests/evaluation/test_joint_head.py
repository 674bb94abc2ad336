"""What the challenge's function does around a head: input, pieces, known languages."""

import itertools

import numpy as np
import pytest

from espnet2_lamer.evaluation.head_decoding import greedy_prefix_search
from espnet2_lamer.evaluation.joint_head import as_speech, cut_quietly


def log_posteriors(frames=6, vocabulary=4, seed=0):
    logits = np.random.default_rng(seed).standard_normal((frames, vocabulary))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def ctc_probabilities(log_probs, blank=0):
    """Probability of every text, by summing over all alignments."""
    found = {}
    frames, vocabulary = log_probs.shape
    for path in itertools.product(range(vocabulary), repeat=frames):
        text = tuple(k for k, _ in itertools.groupby(path) if k != blank)
        score = sum(log_probs[t, k] for t, k in enumerate(path))
        found[text] = np.logaddexp(found.get(text, -np.inf), score)
    return found


def grow(log_probs, first):
    """Greedy growth of a prefix by probabilities of all its continuations."""
    texts = ctc_probabilities(log_probs)

    def of_prefix(prefix):
        mine = [p for t, p in texts.items() if t[: len(prefix)] == prefix]
        return np.logaddexp.reduce(mine) if mine else -np.inf

    prefix = tuple(first)
    while True:
        scores = {k: of_prefix((*prefix, k)) for k in range(1, log_probs.shape[1] - 1)}
        best = max(scores, key=scores.get)
        if texts.get(prefix, -np.inf) > scores[best]:
            return list(prefix)
        prefix = (*prefix, best)


@pytest.mark.parametrize("seed", range(6))
def test_a_known_language_begins_the_hypothesis_and_the_rest_is_free(seed):
    log_probs = log_posteriors(seed=seed)
    free = greedy_prefix_search(log_probs, 0, -1)
    for first in ([], [1], [2], [2, 1]):
        found = greedy_prefix_search(log_probs, 0, -1, first)
        assert found[: len(first)] == first
        assert found == grow(log_probs, first)
        assert first or found == free


def test_a_waveform_becomes_floats_of_full_scale_one():
    for given in (
        np.array([0.5, -1.0]),
        np.array([16384, -32768], np.int16),
        [0.5, -1.0],
    ):
        found = as_speech(given)
        assert found.dtype == np.float32
        assert found.tolist() == [0.5, -1.0]
    mine = np.zeros(4, np.float32)
    assert as_speech(mine) is not mine


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (np.zeros((2, 100)), r"shape \(2, 100\), expected \[samples\] of one"),
        (np.array([0.0, np.nan]), "NaN"),
        (np.array(["a"]), "expected floats or integers"),
    ],
)
def test_what_is_no_waveform_is_refused(given, problem):
    with pytest.raises(ValueError, match=problem):
        as_speech(given)


def test_long_speech_is_cut_where_it_is_quiet():
    speech = np.random.default_rng(0).standard_normal(16000 * 25).astype(np.float32)
    for pause in (8.05, 15.55):
        speech[int((pause - 0.2) * 16000) : int((pause + 0.2) * 16000)] = 0.0
    pieces = cut_quietly(speech, longest=10.0)
    assert np.array_equal(np.concatenate(pieces), speech)
    assert max(map(len, pieces)) <= 160000
    ends = np.cumsum([len(piece) for piece in pieces])[:-1] / 16000
    assert ends[:2] == pytest.approx([8.05, 15.55], abs=0.2)
    (whole,) = cut_quietly(speech[:160000], longest=10.0)
    assert len(whole) == 160000
