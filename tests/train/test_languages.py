"""Languages can be left out of training, as the ablation without replay does."""

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.train.languages import without_languages

LENGTHS = {"a": 3, "b": 4, "c": 5, "d": 6}


@pytest.fixture
def utt2lang(tmp_path):
    path = tmp_path / "utt2lang"
    path.write_text("a cmn\nb eng\nc yue\nd eng\nother fra\n")
    return path


def test_the_excluded_languages_utterances_are_gone(utt2lang):
    assert without_languages(LENGTHS, utt2lang, ["eng"]) == {"a": 3, "c": 5}
    assert without_languages(LENGTHS, utt2lang, ["cmn", "yue"]) == {"b": 4, "d": 6}


@pytest.mark.parametrize(
    ("excluded", "message"),
    [
        (["deu"], "exclude_langs: found deu, expected some of cmn, eng, yue"),
        # It is in utt2lang, but in none of these utterances.
        (["fra"], "exclude_langs: found fra"),
        (["cmn", "eng", "yue"], "cmn, eng, yue leaves no utterance"),
    ],
)
def test_excluding_nothing_or_everything_is_refused(utt2lang, excluded, message):
    with pytest.raises(RecipeError, match=message):
        without_languages(LENGTHS, utt2lang, excluded)


def test_an_utterance_without_a_language_is_refused(utt2lang):
    with pytest.raises(RecipeError, match="no language for 1 utterances, first 'e'"):
        without_languages(LENGTHS | {"e": 1}, utt2lang, ["eng"])
