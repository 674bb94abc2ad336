"""One's own speech is divided so that test measures what training does not have."""

import random
from collections import Counter

import pytest

from espnet2_lamer.data.division import divide, shares_in_train
from espnet2_lamer.data.sampling import seed_of
from espnet2_lamer.data.sets import Utterance


def rows_of(*pairs, lang="eng"):
    """Utterances of (speaker, sentence), in an order that says nothing."""
    rows = [
        Utterance(f"{lang}{n:04d}", "x", lang, speaker=speaker, text=text)
        for n, (speaker, text) in enumerate(pairs)
    ]
    random.Random(0).shuffle(rows)
    return rows


def divided(rows, seed=0):
    apart = divide(rows, seed)
    shares = shares_in_train(rows)
    sizes = Counter(row.split for row in rows)
    (lang,) = apart
    return apart[lang], shares[lang], sizes


def own_sentences(speakers, each):
    return [(f"s{s}", f"{s} says {n}") for s in range(speakers) for n in range(each)]


def crossed(speakers, sentences):
    return [(f"s{s}", f"line {n}") for s in range(speakers) for n in range(sentences)]


@pytest.mark.parametrize(("speakers", "each"), [(10, 10), (25, 4), (40, 3), (4, 25)])
@pytest.mark.parametrize("seed", [0, 1])
def test_speakers_with_sentences_of_their_own_are_kept_apart(speakers, each, seed):
    apart, shares, sizes = divided(rows_of(*own_sentences(speakers, each)), seed)
    assert apart["test"] == "speakers and sentences"
    assert shares == {"speakers": 0, "sentences": 0}
    assert sizes["train"] >= sizes.total() / 2
    assert min(sizes["dev"], sizes["test"]) >= sizes.total() * 0.05


def test_sentences_that_everybody_reads_leave_the_speakers():
    apart, shares, sizes = divided(rows_of(*crossed(10, 10)))
    assert apart == {"test": "speakers", "dev": "speakers"}
    assert shares == {"speakers": 0, "sentences": 100}
    assert sizes == {"train": 80, "dev": 10, "test": 10}


@pytest.mark.parametrize(
    "pairs", [crossed(2, 30), crossed(1, 50), own_sentences(1, 50)]
)
def test_one_or_two_speakers_leave_the_sentences(pairs):
    apart, shares, sizes = divided(rows_of(*pairs))
    assert apart == {"test": "sentences", "dev": "sentences"}
    assert shares == {"speakers": 100, "sentences": 0}
    assert 0.05 <= sizes["test"] / sizes.total() <= 0.15


def test_of_three_speakers_one_is_tested_and_dev_has_sentences_of_its_own():
    apart, shares, sizes = divided(rows_of(*own_sentences(3, 20)))
    assert apart == {"test": "speakers and sentences", "dev": "sentences"}
    assert shares == {"speakers": 0, "sentences": 0}
    assert sizes["train"] > sizes["test"] > sizes["dev"] > 0


def test_punctuation_and_case_make_no_other_sentence():
    pairs = [(f"s{n}", f"Line {n % 30}{'.' * (n % 2)}") for n in range(60)]
    _, shares, _ = divided(rows_of(*pairs))
    assert shares == {"speakers": 0, "sentences": 0}


def test_what_nothing_is_known_of_is_divided_as_it_always_was():
    rows = rows_of(*(("", f"line {n}") for n in range(40)))
    ranked = sorted(rows, key=lambda row: seed_of(3, "split", row.utt_id))
    apart, shares, sizes = divided(rows, 3)
    splits = ["dev"] * 4 + ["test"] * 4 + ["train"] * 32
    assert [row.split for row in ranked] == splits
    assert shares == {"sentences": 0}
    assert apart == {"test": "sentences", "dev": "sentences"}


def test_a_test_speaker_without_text_is_not_trained_on_either():
    pairs = [(f"s{n % 10}", f"line {n}" if n % 5 else "") for n in range(100)]
    rows = rows_of(*pairs)
    _, shares, _ = divided(rows)
    assert shares["speakers"] == 0
    assert any(row.split == "test" and row.text for row in rows)


def test_rare_text_is_shared_out_where_there_is_much_speech_without():
    rows = rows_of(*(("", f"line {n}" if n < 20 else "") for n in range(500)))
    divide(rows, 0)
    assert Counter(row.split for row in rows if row.text) == {
        **{"train": 16, "dev": 2, "test": 2}
    }


def test_given_splits_stay_and_the_order_of_rows_does_not_matter():
    first, again = (rows_of(*own_sentences(10, 5)) for _ in range(2))
    given = rows_of(("s0", "x"), lang="cmn")
    given[0].split = "test"
    again.reverse()
    divide([*given, *first], 0)
    divide(again, 0)
    assert given[0].split == "test"
    assert {r.utt_id: r.split for r in first} == {r.utt_id: r.split for r in again}


def test_two_utterances_are_training_speech():
    rows = rows_of(("a", "x"), ("b", "y"))
    assert divide(rows, 0) == {"eng": {}}
    assert [row.split for row in rows] == ["train", "train"]
