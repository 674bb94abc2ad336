"""Decoding with language models finds what a search over every text would find."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.decoding_weights import choose
from espnet2_lamer.evaluation.lm_search import (
    DECODING,
    build_search,
    read_decoding,
    search_tokens,
)
from espnet2_lamer.metrics.ngram import train_ngram

TOKENS = ["<blank>", "<unk>", "a", "b", "<sos/eos>"]
EOS = len(TOKENS) - 1


class Posteriors(torch.nn.Module):
    """Stands for CTC: frames are log posteriors already."""

    def log_softmax(self, frames):
        return frames


class PlainLm(torch.nn.Module):
    """A bigram table with the interface of ESPnet's transformer LM."""

    def __init__(self, seed):
        super().__init__()
        rows = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed))
        self.table = rows.log_softmax(-1)

    def init_state(self, x):
        return None

    def score(self, y, state, x):
        return self.table[y[-1]], None


def ctc_probability(log_probs, tokens):
    """Sum over all alignments, by torch's loss."""
    loss = torch.nn.functional.ctc_loss(
        log_probs[:, None],
        torch.tensor([tokens], dtype=torch.long).reshape(1, -1),
        torch.tensor([len(log_probs)]),
        torch.tensor([len(tokens)]),
        reduction="none",
    )
    return -float(loss)


def expected_best(log_probs, decoding, ngram, lm):
    """Score every text that the frames have room for."""
    frames = len(log_probs)
    best, found = -np.inf, None
    # <unk> and <sos/eos> have no probability in these posteriors.
    for length in range(frames + 1):
        for text in itertools.product((2, 3), repeat=length):
            if length + sum(a == b for a, b in itertools.pairwise(text)) > frames:
                continue
            score = decoding["ctc_weight"] * ctc_probability(log_probs, text)
            past = ["<s>"]
            for before, token in zip((EOS, *text), text, strict=False):
                if ngram is not None:
                    prob = ngram.log_prob(TOKENS[token], past)
                    score += decoding["ngram_weight"] * prob
                if lm is not None:
                    score += decoding["lm_weight"] * float(lm.table[before, token])
                past.append(TOKENS[token])
            score += decoding["penalty"] * length
            if score > best:
                best, found = score, list(text)
    return found


@pytest.mark.parametrize("models", ["ngram", "lm", "both", "none"])
def test_the_search_finds_the_best_of_all_texts(models):
    draw = np.random.default_rng(4)
    texts = [draw.choice(list("aab"), size=4).tolist() for _ in range(20)]
    ngram = train_ngram(texts, 3, ["a", "b"]) if models in ("ngram", "both") else None
    differs = 0
    for seed in range(15):
        lm = PlainLm(seed) if models in ("lm", "both") else None
        decoding = {
            "beam_size": 200,
            "ctc_weight": 1.0,
            "lm_weight": float(draw.uniform(0.2, 2)),
            "ngram_weight": float(draw.uniform(0.2, 2)),
            "penalty": float(draw.uniform(-0.5, 1)),
        }
        logits = torch.from_numpy(draw.normal(size=(4, 5))).float() * 2
        logits[:, [1, EOS]] = -1e4
        log_probs = logits.log_softmax(-1)
        model = SimpleNamespace(
            ctc=Posteriors(), sos=EOS, eos=EOS, blank_id=0, token_list=TOKENS
        )
        search = build_search(model, decoding, ngram, lm)
        found = search_tokens(search, log_probs, EOS)
        assert found == expected_best(log_probs, decoding, ngram, lm)
        plain = {**decoding, "penalty": 0.0}
        differs += found != expected_best(log_probs, plain, None, None)
    # Otherwise language models and penalty would have had no say.
    assert differs


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"beam": 3}, "x.yaml: found 'beam', expected some of beam_size"),
        ({"beam_size": 0}, "beam_size: found 0, expected a number, 1 or more"),
        ({"beam_size": 2.5}, "beam_size: found 2.5"),
        ({"lm_weight": -0.1}, "lm_weight: found -0.1, expected a number, 0 or more"),
        ({"penalty": "high"}, "penalty: found 'high', expected a number"),
        ({"penalty": True}, "penalty: found True"),
        ({"ngram_weight": [0.1]}, r"ngram_weight: found \[0.1\]"),
    ],
)
def test_wrong_decoding_settings_are_refused_by_key(conf, message):
    with pytest.raises(RecipeError, match=message):
        read_decoding(conf, "x.yaml")


def test_lists_are_read_where_there_is_a_choice():
    grid = read_decoding({"penalty": [0, 1]}, "x.yaml", lists=True)
    assert grid == {**DECODING, "penalty": [0, 1]}
    for conf in ({"penalty": []}, {"beam_size": [1, 2]}, {"penalty": [0, "x"]}):
        with pytest.raises(RecipeError, match="x.yaml: "):
            read_decoding(conf, "x.yaml", lists=True)


def test_the_choice_finds_the_least_error_and_asks_once_for_each_setting():
    asked = []

    def error(setting):
        asked.append(tuple(setting.values()))
        return (setting["lm_weight"] - 0.6) ** 2 + (setting["penalty"] - 1) ** 2

    grid = {"beam_size": 10, "lm_weight": [0.2, 0.4, 0.6], "penalty": [0, 1, 2]}
    setting, least, tried = choose(grid, error)
    assert setting == {"beam_size": 10, "lm_weight": 0.6, "penalty": 1}
    assert least == 0 and len(asked) == len(set(asked)) == tried
