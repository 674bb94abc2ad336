"""n-gram models: Witten-Bell's formula, ARPA files, scores of all tokens at once."""

import gzip
import math
import random
from collections import Counter

import numpy as np
import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.metrics.ngram import (
    TokenScores,
    perplexity,
    read_arpa,
    train_ngram,
    write_arpa,
)

VOCABULARY = ["a", "b", "c", "d"]  # d is never seen


def sentences(seed, count=30):
    draw = random.Random(seed)
    return [draw.choices("abc", (3, 2, 1), k=draw.randrange(7)) for _ in range(count)]


def plain_probability(texts, token, context, kinds):
    """The formula, from counts of the text, recursively."""
    if context is None:
        return 1.0 / kinds
    padded = [["<s>", *text, "</s>"] for text in texts if text]
    found = Counter(
        text[place]
        for text in padded
        for place in range(1, len(text))
        if place >= len(context)
        and tuple(text[place - len(context) : place]) == tuple(context)
    )
    shorter = None if not context else context[1:]
    lower = plain_probability(texts, token, shorter, kinds)
    if not found:
        return lower
    return (found[token] + len(found) * lower) / (found.total() + len(found))


@pytest.mark.parametrize("order", [1, 2, 4])
def test_probabilities_are_witten_bells(order):
    texts = sentences(order)
    model = train_ngram(texts, order, VOCABULARY)
    draw = random.Random(1)
    for _ in range(60):
        context = draw.choices(["<s>", "a", "b", "c", "d"], k=draw.randrange(order + 2))
        token = draw.choice([*VOCABULARY, "</s>", "<unk>"])
        known = tuple(context)[max(0, len(context) - order + 1) :]
        expected = plain_probability(texts, token, known, len(VOCABULARY) + 2)
        assert math.exp(model.log_prob(token, context)) == pytest.approx(expected)


def test_probabilities_after_any_context_sum_to_one():
    model = train_ngram(sentences(5), 3, VOCABULARY)
    scores = TokenScores(model, [*VOCABULARY, "</s>", "<unk>"])
    for context in [(), ("<s>",), ("a", "b"), ("d", "d"), ("x", "a")]:
        assert np.exp(scores(context)).sum() == pytest.approx(1.0)


def test_all_tokens_at_once_have_the_probabilities_of_each():
    model = train_ngram(sentences(6), 3, VOCABULARY)
    tokens = ["<blank>", *VOCABULARY, "</s>", "of no model"]
    scores = TokenScores(model, tokens)
    draw = random.Random(2)
    for _ in range(40):
        past = draw.choices(["<s>", *VOCABULARY], k=draw.randrange(5))
        found = scores(scores.context(past))
        expected = [model.log_prob(token, past) for token in tokens]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
def test_an_arpa_file_gives_the_model_back_and_is_always_the_same(tmp_path, name):
    texts = sentences(7)
    model = train_ngram(texts, 3, VOCABULARY)
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write_arpa(model, tmp_path / folder / name)
    read = read_arpa(tmp_path / "x" / name)
    assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()
    assert read.order == 3 and read.probs.keys() == model.probs.keys()
    for key, value in model.probs.items():
        assert read.probs[key] == pytest.approx(value, abs=1e-6)
    assert perplexity(read, texts) == pytest.approx(perplexity(model, texts), rel=1e-5)


def test_an_arpa_file_of_another_program_is_read(tmp_path):
    """As SRILM and kenlm write them: tabs, orders, `<s>` with -99, `<unk>`."""
    text = (
        "\n\\data\\\nngram 1=4\nngram 2=2\n\n\\1-grams:\n-1.0\t<unk>\n-99\t<s>\t-0.3\n"
        "-0.5\ta\t-0.2\n-0.7\t</s>\n\n\\2-grams:\n-0.1\t<s> a\n-0.4\ta </s>\n\n"
        "\\end\\\n"
    )
    path = tmp_path / "other.arpa.gz"
    path.write_bytes(gzip.compress(text.encode()))
    model = read_arpa(path)
    log10 = math.log(10)
    assert model.log_prob("a", ["<s>"]) == pytest.approx(-0.1 * log10)
    assert model.log_prob("a", ["a"]) == pytest.approx((-0.2 - 0.5) * log10)
    assert model.log_prob("b", ["a"]) == pytest.approx((-0.2 - 1.0) * log10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "file not found"),
        ("", "cut off"),
        ("\\data\\\n\n\\end\\\n", "no n-grams"),
        ("\\1-grams:\n-0.1 a\n", "cut off"),
        ("\\1-grams:\nnone a\n\\end\\\n", "could not convert"),
        ("\\2-grams:\n-0.1 a\n\\end\\\n", "fields in a 2-gram"),
    ],
)
def test_what_is_no_arpa_file_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "bad.arpa"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecipeError, match=message) as error:
        read_arpa(path)
    assert str(path) in str(error.value)


def test_a_small_file_that_unpacks_without_end_is_refused(tmp_path):
    path = tmp_path / "bomb.arpa.gz"
    path.write_bytes(gzip.compress(b"\\1-grams:\n" + b"-1.0\ta\n" * 1_000_000))
    with pytest.raises(RecipeError, match="unpacks to what no text needs"):
        read_arpa(path)


def test_no_text_and_no_order_are_refused():
    with pytest.raises(RecipeError, match="no text"):
        train_ngram([[], []], 2, VOCABULARY)
    with pytest.raises(RecipeError, match="ngram_num: found 0"):
        train_ngram([["a"]], 0, VOCABULARY)
