"""The language probe is tested on speakers that it was not trained on."""

import numpy as np
import pytest

from espnet2_lamer.analysis.language_probe import (
    chance_level,
    held_out_folds,
    language_probe,
)
from espnet2_lamer.errors import RecipeError

LANGS = ["cmn"] * 24 + ["eng"] * 24
UTTS = [f"u{i:02}" for i in range(48)]
# Four speakers of each language, six utterances each.
SPEAKERS = [f"{lang}_{i // 6 % 4}" for i, lang in enumerate(LANGS)]


def test_no_speaker_is_in_two_parts_and_each_part_has_each_language():
    folds = held_out_folds(UTTS, LANGS, SPEAKERS, folds=4)
    assert folds.by_speaker and folds.number == 4
    for speaker in set(SPEAKERS):
        own = [p for p, s in zip(folds.part, SPEAKERS, strict=True) if s == speaker]
        assert len(set(own)) == 1
    for part in range(4):
        assert {x for p, x in zip(folds.part, LANGS, strict=True) if p == part} == {
            "cmn",
            "eng",
        }


def test_a_language_with_few_speakers_limits_the_number_of_parts():
    speakers = [f"cmn_{i % 2}" for i in range(24)] + SPEAKERS[24:]
    assert held_out_folds(UTTS, LANGS, speakers).number == 2


@pytest.mark.parametrize(
    "speakers", [[""] * 48, ["one"] * 24 + SPEAKERS[24:]], ids=["unknown", "one"]
)
def test_without_two_speakers_a_language_utterances_are_divided(speakers):
    folds = held_out_folds(UTTS, LANGS, speakers)
    assert not folds.by_speaker and folds.number == 5
    assert folds.owners == UTTS


def test_a_single_utterance_cannot_be_held_out():
    with pytest.raises(RecipeError, match="two utterances of every language"):
        held_out_folds(["a", "b", "c"], ["eng", "eng", "yue"], [""] * 3)


def test_vectors_that_tell_the_language_are_found():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(48, 5))
    vectors[:24, 2] += 9
    folds = held_out_folds(UTTS, LANGS, SPEAKERS)
    measure = language_probe(vectors, LANGS, folds)
    assert measure.value == 100
    # Its interval draws the eight speakers.
    assert measure.count == 8


def test_vectors_that_tell_only_the_speaker_are_seen_through():
    rng = np.random.default_rng(1)
    names = sorted(set(SPEAKERS))
    places = rng.normal(size=(8, 20)) * 10
    vectors = np.stack([places[names.index(s)] for s in SPEAKERS])
    vectors += rng.normal(size=vectors.shape)
    by_speaker = held_out_folds(UTTS, LANGS, SPEAKERS)
    by_utterance = held_out_folds(UTTS, LANGS, [""] * 48)
    assert language_probe(vectors, LANGS, by_utterance).value == 100
    found = language_probe(vectors, LANGS, by_speaker)
    assert found.value < 80
    assert found.interval[0] < 50 < found.interval[1]


def test_chance_is_the_share_of_the_most_frequent_language():
    langs = ["cmn"] * 30 + ["eng"] * 18
    folds = held_out_folds(UTTS, langs, [""] * 48, folds=3)
    assert chance_level(langs, folds) == pytest.approx(100 * 30 / 48)
