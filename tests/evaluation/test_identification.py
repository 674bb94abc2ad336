"""Closed-set identification against CTC probabilities summed path by path."""

import itertools

import torch

from espnet2_lamer.evaluation.head_decoding import language_tags, most_probable_tag


def _probability(log_probs, label, blank):
    total = 0.0
    frames, tokens = log_probs.shape
    for path in itertools.product(range(tokens), repeat=frames):
        collapsed = [k for k, _ in itertools.groupby(path) if k != blank]
        if collapsed == [label]:
            total += sum(log_probs[t, k] for t, k in enumerate(path)).exp().item()
    return total


def test_the_tag_with_the_largest_ctc_probability_is_chosen():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        log_probs = torch.randn(4, 5, generator=generator).mul(2).log_softmax(-1)
        # A strong blank, under which a free hypothesis would often be empty.
        log_probs = (log_probs + torch.tensor([2.0, 0, 0, 0, 0])).log_softmax(-1)
        expected = max((2, 3, 4), key=lambda tag: _probability(log_probs, tag, 0))
        assert most_probable_tag(log_probs, [2, 3, 4]) == expected


def test_only_bracketed_tokens_are_language_tags():
    tokens = ["<blank>", "<unk>", "[eng]", "a", "[org_jpn]", "<sos/eos>"]
    assert language_tags(tokens) == [2, 4]
