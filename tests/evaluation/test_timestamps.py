"""Tokens with times become words; both ways to align give the same."""

import numpy as np
import pytest

from espnet2_lamer.evaluation import timestamps
from espnet2_lamer.evaluation.timestamps import TimedWord, align, group_words


def tokens(*texts):
    return [TimedWord(t, float(n), n + 0.5, 0.25) for n, t in enumerate(texts)]


@pytest.mark.parametrize(
    ("kind", "parts", "words"),
    [
        ("char", ["A", "B", "<space>", "C"], [("AB", 0, 1.5), ("C", 3, 3.5)]),
        ("char", ["<space>", "<space>", "A"], [("A", 2, 2.5)]),
        (
            "char",
            ["你", "好", "A", "B"],
            [("你", 0, 0.5), ("好", 1, 1.5), ("AB", 2, 3.5)],
        ),
        ("bpe", ["▁TH", "E", "▁", "X"], [("THE", 0, 1.5), ("X", 2, 3.5)]),
        ("bpe", ["E", "▁A"], [("E", 0, 0.5), ("A", 1, 1.5)]),
        ("word", ["n", "i3"], [("n", 0, 0.5), ("i3", 1, 1.5)]),
        ("char", [], []),
    ],
)
def test_words_last_from_their_first_token_to_their_last(kind, parts, words):
    found = group_words(tokens(*parts), kind)
    assert [(w.text, w.start, w.end) for w in found] == words
    assert all(w.confidence == pytest.approx(0.25) for w in found)


def test_without_torchaudios_alignment_the_result_is_the_same(monkeypatch):
    rng = np.random.default_rng(3)
    values = rng.normal(size=(40, 6)).astype(np.float32)
    log_probs = values - np.log(np.exp(values).sum(1, keepdims=True))
    chosen = [3, 3, 1, 5]
    found = align(log_probs, chosen)
    monkeypatch.setattr(timestamps, "_has_forced_align", lambda: False)
    assert align(log_probs, chosen) == found
    assert [span.token for span in found] == chosen
    assert align(log_probs, []) == []
