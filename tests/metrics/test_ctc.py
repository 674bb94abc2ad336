"""The best CTC alignment: against every path, and against torchaudio's."""

import itertools

import numpy as np
import pytest
import torch

from espnet2_lamer.metrics.ctc import frame_seconds, spans, viterbi

RNG = np.random.default_rng(0)


def posteriors(frames, size):
    values = RNG.normal(size=(frames, size))
    return values - np.log(np.exp(values).sum(1, keepdims=True))


def collapsed(path):
    kept = [token for token, _ in itertools.groupby(path)]
    return [token for token in kept if token != 0]


@pytest.mark.parametrize("tokens", [[1], [1, 2], [1, 1], [2, 1, 2], [1, 2, 2]])
def test_the_alignment_is_the_best_of_all_paths(tokens):
    for frames in range(len(tokens) + 1, 7):
        log_probs = posteriors(frames, 3)
        paths = itertools.product(range(3), repeat=frames)
        fits = [path for path in paths if collapsed(path) == tokens]
        best = max(fits, key=lambda p: sum(log_probs[t, k] for t, k in enumerate(p)))
        assert viterbi(log_probs, tokens).tolist() == list(best)


def test_the_alignment_is_torchaudios():
    align = pytest.importorskip("torchaudio.functional").forced_align
    for _ in range(50):
        frames, size = int(RNG.integers(8, 60)), int(RNG.integers(2, 12))
        tokens = RNG.integers(1, size, size=int(RNG.integers(1, 5))).tolist()
        log_probs = posteriors(frames, size).astype(np.float32)
        try:
            path, _ = align(torch.from_numpy(log_probs)[None], torch.tensor([tokens]))
        except (RuntimeError, NotImplementedError):
            pytest.skip("this build of torchaudio has no forced_align")
        assert viterbi(log_probs, tokens).tolist() == path[0].tolist()


def test_more_tokens_than_frames_are_refused():
    with pytest.raises(ValueError, match="2 tokens need 3 frames, found 2"):
        viterbi(posteriors(2, 3), [1, 1])


def test_spans_are_where_tokens_are_and_their_mean_posterior():
    log_probs = posteriors(7, 3)
    path = np.array([0, 1, 1, 0, 1, 2, 0])
    found = spans(path, log_probs)
    assert [(s.token, s.start, s.end) for s in found] == [
        (1, 1, 3),
        (1, 4, 5),
        (2, 5, 6),
    ]
    assert found[0].score == pytest.approx(log_probs[1:3, 1].mean())


def test_frames_lie_in_the_middle_of_the_samples():
    edges = frame_seconds(samples=16000, frames=23, hop=640, rate=16000)
    assert len(edges) == 24
    np.testing.assert_allclose(np.diff(edges), 0.04)
    assert edges[0] + edges[-1] == pytest.approx(1.0)
    # More frames than samples: the recording ends where it ends.
    assert frame_seconds(1000, 4, 320, 16000)[-1] == 1000 / 16000
