"""Span masks: fairseq's ``static`` statistics, never beyond the utterance."""

from math import comb, floor

import numpy as np
import pytest
import torch

from espnet2_lamer.hubert.espnet_model import index_mask
from espnet2_lamer.train.batching import span_mask


def expected_share(num_frames, mask_prob, mask_length, min_masks=2):
    """Mean share of masked frames, from fairseq's rule for long utterances.

    n = floor(p T / L + u) spans, u uniform in [0, 1), begin at distinct frames of
    0 .. T - L - 1. A frame stays unmasked when none of the starts that reach it is
    drawn: C(S - c, n) / C(S, n), with S starts in all and c that reach it.
    """
    starts = num_frames - mask_length
    exact = mask_prob * num_frames / mask_length
    low = floor(exact)
    share = 0.0
    for spans, chance in ((low, 1 - (exact - low)), (low + 1, exact - low)):
        spans = max(spans, min_masks)
        for t in range(num_frames):
            reaching = min(t, starts - 1) - max(0, t - mask_length + 1) + 1
            unmasked = comb(starts - reaching, spans) / comb(starts, spans)
            share += chance * (1 - unmasked) / num_frames
    return share


@pytest.mark.parametrize(
    ("num_frames", "mask_prob", "mask_length"),
    [(100, 0.8, 10), (499, 0.8, 10), (249, 0.65, 10), (150, 0.5, 5), (60, 0.2, 10)],
)
def test_share_of_masked_frames_is_what_theory_says(num_frames, mask_prob, mask_length):
    draws = 2000
    rng = np.random.default_rng(7)
    shares = np.array(
        [
            len(span_mask(num_frames, mask_prob, mask_length, rng)) / num_frames
            for _ in range(draws)
        ]
    )
    theory = expected_share(num_frames, mask_prob, mask_length)
    # Four standard errors of the simulated mean.
    assert abs(shares.mean() - theory) < 4 * shares.std() / draws**0.5


def test_the_papers_setting_masks_somewhat_over_half_of_a_long_utterance():
    # Each frame is reached by 10 of T starts, 0.08 T of which are drawn without
    # replacement: (1 - 0.08)^10 of the frames stay unmasked in a long utterance.
    assert expected_share(5000, 0.8, 10) == pytest.approx(1 - 0.92**10, abs=0.003)


@pytest.mark.parametrize("num_frames", [*range(2, 40), 100])
def test_masks_are_sorted_distinct_frames_of_the_utterance(num_frames):
    rng = np.random.default_rng(num_frames)
    for _ in range(50):
        frames = span_mask(num_frames, 0.8, 10, rng)
        assert frames.dtype == np.int64
        assert len(frames) >= 1
        assert frames[0] >= 0 and frames[-1] < num_frames
        assert (np.diff(frames) > 0).all()
        assert len(frames) < num_frames


@pytest.mark.parametrize("num_frames", [0, 1])
def test_an_utterance_without_two_frames_is_not_masked(num_frames):
    assert len(span_mask(num_frames, 0.8, 10, np.random.default_rng(0))) == 0


def test_at_least_min_masks_spans_are_drawn():
    rng = np.random.default_rng(0)
    for _ in range(100):
        frames = span_mask(200, 0.0, 10, rng, min_masks=3)
        # Three spans of ten frames at distinct starts cover 12 frames at the least.
        assert 12 <= len(frames) <= 30
    assert len(span_mask(200, 0.0, 10, rng, min_masks=0)) == 0


def test_long_utterances_keep_the_full_span_length():
    rng = np.random.default_rng(0)
    frames = span_mask(500, 0.02, 10, rng, min_masks=1)
    runs = np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1)
    assert all(len(run) >= 10 for run in runs)


def test_the_same_generator_state_gives_the_same_mask():
    masks = [span_mask(300, 0.8, 10, np.random.default_rng([1, s])) for s in (0, 0, 1)]
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


def test_index_mask_turns_indices_into_booleans_and_drops_the_padding():
    indices = torch.tensor([[0, 2, 3], [4, -1, -1], [-1, -1, -1]])
    expected = torch.tensor(
        [[1, 0, 1, 1, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool
    )
    assert torch.equal(index_mask(indices, 5), expected)
