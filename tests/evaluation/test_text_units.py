"""Transcripts become the units that ML-SUPERB scores."""

import random

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.text_units import default_unit, normalize_text, to_units

# The finals of the Hanyu Pinyin scheme as they are spelled with no initial
# (GB/T 16159), against the strict final they stand for.
ZERO_INITIAL = {
    "yi": "i",
    "ya": "ia",
    "yan": "ian",
    "you": "iou",
    "wu": "u",
    "wo": "uo",
    "wei": "uei",
    "weng": "ueng",
    "yu": "ü",
    "yue": "üe",
    "yuan": "üan",
    "yun": "ün",
    "yong": "iong",
    "er": "er",
    "ai": "ai",
}


def test_default_units_are_pinyin_for_mandarin_jyutping_for_cantonese_else_char():
    assert [default_unit(lang) for lang in ("eng", "cmn", "yue", "swa")] == [
        "char",
        "pinyin",
        "jyutping",
        "char",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop,  well-known!", "DONT STOP WELLKNOWN"),
        ("“你好”，世界！ 再见…", "你好世界 再见"),
        ("１～２　ｄ＋", "１２ Ｄ"),
        ("straße\t5°", "STRASSE 5°"),
    ],
)
def test_normalised_text_has_no_punctuation_of_any_script_and_is_upper_case(
    text, expected
):
    assert normalize_text(text) == expected
    assert to_units(text, "char", "eng") == expected
    assert to_units(text, "word", "eng") == expected


@pytest.mark.parametrize(("spelling", "final"), ZERO_INITIAL.items())
def test_a_pinyin_syllable_without_initial_becomes_its_strict_final(spelling, final):
    assert to_units("x", "pinyin", "cmn", spelling + "3") == final + "3"


def test_pinyin_syllables_split_into_initial_and_final_with_tone():
    syllables = "zhong1 lv4 nü3 lu:4 Bei3 xin1yan3 zi5 de liu2 KTV ,"
    assert to_units("x", "pinyin", "cmn", syllables) == (
        "zh ong1 l v4 n v3 l v4 b ei3 x in1 ian3 z i d e l iou2 KTV"
    )


@pytest.mark.slow
def test_pinyin_from_characters_equals_espnets_phoneme_tokenizer():
    from espnet2.text.phoneme_tokenizer import pypinyin_g2p_phone

    rng = random.Random(0)
    characters = "我们去绿色的学校吃饭女儿略有云雨圆旅行长城重要银行了吗"
    for _ in range(200):
        words = [
            "".join(rng.choices(characters, k=rng.randint(1, 4)))
            for _ in range(rng.randint(1, 5))
        ]
        text = " ".join(words + rng.choices(["ABC", "KTV", ""], k=1))
        expected = " ".join(pypinyin_g2p_phone(text)).split()
        assert to_units(text, "pinyin", "cmn").split() == expected


def test_pinyin_from_characters_and_from_its_syllables_agree():
    from_syllables = to_units("绿色女儿", "pinyin", "cmn", "lv4 se4 nv3 er2")
    assert to_units("绿色女儿", "pinyin", "cmn") == from_syllables


def test_jyutping_splits_into_onset_and_final_with_tone():
    syllables = "ngo5 m4 oi3 gwok3 ng5 sik6faan6"
    assert to_units("x", "jyutping", "yue", syllables) == (
        "ng o5 m4 oi3 gw ok3 ng5 s ik6 f aan6"
    )


def test_jyutping_from_characters_keeps_what_has_no_reading():
    assert to_units("我去食飯，𠮶", "jyutping", "yue") == (
        "ng o5 h eoi3 s ik6 f aan6 𠮶"
    )


def test_cantonese_in_pinyin_takes_mandarin_readings_not_the_jyutping_given():
    assert to_units("大", "pinyin", "yue", "daai6") == "d a4"


def test_phones_come_only_from_a_given_phone_string():
    assert to_units("hat", "phone", "eng", "h  a t") == "h a t"
    with pytest.raises(RecipeError, match="no phone string.*choose unit char"):
        to_units("hat", "phone", "eng")


@pytest.mark.parametrize(
    ("text", "unit", "lang", "message"),
    [
        ("hat", "pinyin", "eng", "does not fit language 'eng'; choose char"),
        ("你", "jyutping", "cmn", "does not fit language 'cmn'; choose pinyin"),
        ("hat", "bytes", "eng", "expected one of char, word, pinyin"),
        ("？！", "char", "cmn", "nothing is left in unit char"),
        ("2000", "pinyin", "cmn", "nothing is left in unit pinyin"),
    ],
)
def test_text_that_cannot_be_put_in_units_is_an_error_that_says_why(
    text, unit, lang, message
):
    with pytest.raises(RecipeError, match=message):
        to_units(text, unit, lang)
