"""Languages can be left out of training, as the ablation without replay does."""

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.train.batching import chosen_utterances, read_hours

LENGTHS = {"a": 3, "b": 4, "c": 5, "d": 6}


@pytest.fixture
def utt2lang(tmp_path):
    path = tmp_path / "utt2lang"
    path.write_text("a cmn\nb eng\nc yue\nd eng\nother fra\n")
    return path


def test_the_excluded_languages_utterances_are_gone(utt2lang):
    assert chosen_utterances(LENGTHS, utt2lang, ["eng"]) == {"a": 3, "c": 5}
    assert chosen_utterances(LENGTHS, utt2lang, ["cmn", "yue"]) == {"b": 4, "d": 6}


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
        chosen_utterances(LENGTHS, utt2lang, excluded)


def test_an_utterance_without_a_language_is_refused(utt2lang):
    with pytest.raises(RecipeError, match="no language for 1 utterances, first 'e'"):
        chosen_utterances(LENGTHS | {"e": 1}, utt2lang, ["eng"])


def test_at_most_so_many_hours_of_a_language_stay(tmp_path):
    lengths = {f"{lang}{i}": 16000 * 36 for i in range(100) for lang in ("e", "c")}
    table = tmp_path / "utt2lang"
    table.write_text("".join(f"{utt} {utt[0]}ng\n" for utt in lengths))
    before: set[str] = set()
    for hours in (0.001, 0.05, 0.3, 9):  # 36 s are 0.01 h
        kept = chosen_utterances(lengths, table, hours={"eng": hours})
        eng = {utt for utt in kept if utt[0] == "e"}
        assert len(eng) == min(100, max(1, round(hours / 0.01)))
        assert before <= eng
        assert sum(utt[0] == "c" for utt in kept) == 100
        assert list(kept) == sorted(kept)
        assert all(kept[utt] == lengths[utt] for utt in kept)
        before = eng
    with pytest.raises(RecipeError, match="max_hours: found yue, expected some of cng"):
        chosen_utterances(lengths, table, hours={"yue": 1})


@pytest.mark.parametrize("word", ["eng", "eng=", "eng=0", "=1", "eng=-1", "eng=x"])
def test_hours_are_a_language_and_a_number_above_0(word):
    assert read_hours(["eng=0.5", "cmn=2"]) == {"eng": 0.5, "cmn": 2}
    with pytest.raises(RecipeError, match=f"max_hours: found '{word}'"):
        read_hours([word])
