"""What is compared in which unit, and who counts as identified."""

import pytest

from espnet2_lamer.fileio.datadir import write_table
from espnet2_lamer.recipe.whisper.data import target_text
from espnet2_lamer.recipe.whisper.scoring import (
    convert,
    decode_dir,
    identified,
    score,
    score_unit,
    units_of,
)
from tests.recipe.whisper.settings import make_options


@pytest.fixture
def options(tmp_path):
    """Two languages with decoded test sets of two utterances."""
    found = make_options(tmp_path, systems=["mole"], langs=["eng", "cmn"])
    references = {
        "eng": {"e1": "Good morning, Sir!", "e2": "it's late"},
        "cmn": {"c1": "你好，世界", "c2": "谢谢"},
    }
    hypotheses = {
        "eng": {"e1": "good morning sir", "e2": "it's later"},
        "cmn": {"c1": "你好 世界。", "c2": "謝謝"},
    }
    languages = {"e1": "eng", "e2": "cmn", "c1": "cmn", "c2": "cmn"}
    for lang, texts in references.items():
        (found.set_dir(lang, "test")).mkdir(parents=True)
        write_table(found.set_dir(lang, "test") / "text.raw", texts)
        for run in ("mole_aware", "mole_agnostic"):
            here = decode_dir(found, run, lang)
            here.mkdir(parents=True)
            write_table(here / "text", hypotheses[lang])
        write_table(here / "lang", {utt: languages[utt] for utt in texts})
    return found


def test_the_first_unit_is_words_where_they_are_written_apart():
    assert units_of("eng") == ("word", "char")
    assert units_of("cmn") == ("char", "pinyin")
    assert units_of("yue") == ("char", "jyutping")
    assert units_of("jpn") == ("char",)


def test_case_punctuation_and_spaces_between_hanzi_are_no_errors(options):
    words = score_unit(options, "mole_aware", "eng", "word")
    assert (words.total.errors, words.total.ref_length) == (1, 5)
    hanzi = score_unit(options, "mole_aware", "cmn", "char")
    # 謝謝 for 谢谢 in characters, but not in pinyin.
    assert (hanzi.total.errors, hanzi.total.ref_length) == (2, 6)
    assert score_unit(options, "mole_aware", "cmn", "pinyin").total.errors == 0


def test_an_empty_hypothesis_is_scored(options):
    write_table(decode_dir(options, "mole_aware", "cmn") / "text", {"c1": "", "c2": ""})
    found = score_unit(options, "mole_aware", "cmn", "pinyin")
    assert found.error_rate == 100 and found.total.ref_length > 0
    assert convert("...", "char", "eng") == ""


def test_a_romanised_hypothesis_is_its_own_reading():
    assert convert("Shang4, liu4.", "pinyin", "cmn") == "sh ang4 l iou4"
    assert convert("上六", "pinyin", "cmn") == "sh ang4 l iou4"
    assert convert("tat4 kwong6", "jyutping", "yue") == "t at4 kw ong6"


def test_the_summary_has_every_run_language_and_unit(options):
    import json

    score(options)
    summary = json.loads((options.expdir / "scores.json").read_text())
    assert set(summary) == {"mole_aware", "mole_agnostic"}
    assert set(summary["mole_aware"]["eng"]) == {"word", "char"}
    low, high = summary["mole_aware"]["eng"]["word"]["interval"]
    assert low <= summary["mole_aware"]["eng"]["word"]["error_rate"] <= high


def test_the_identifier_is_scored_over_all_languages_where_it_chose(options):
    assert identified(options, "mole_aware") is None
    found = identified(options, "mole_agnostic")
    assert found.accuracy == 75 and found.measure.count == 4
    assert found.confusion == {"cmn": {"cmn": 2}, "eng": {"cmn": 1, "eng": 1}}


def test_targets_keep_their_spelling_unless_all_is_capital():
    assert target_text("Good morning, Sir!") == "Good morning, Sir!"
    assert target_text("MARK IS GOING") == "mark is going"
    assert target_text("谢谢") == "谢谢"
