"""Transcripts become the units that ML-SUPERB scores."""

import random
import sys
from types import SimpleNamespace

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.text_units import (
    count_unread,
    default_unit,
    normalize_text,
    official_text,
    to_units,
    unify_spelling,
)

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


def test_official_units_are_pinyin_for_mandarin_and_characters_for_cantonese():
    langs = ("eng", "cmn", "yue", "swa")
    assert [default_unit(lang, official=True) for lang in langs] == [
        *("char", "pinyin", "char", "char")
    ]


def test_japanese_phones_are_those_of_pyopenjtalk(monkeypatch):
    said = []

    def g2p(text, kana):
        said.append((text, kana))
        return "k o N n i ch i w a"

    monkeypatch.setitem(sys.modules, "pyopenjtalk", SimpleNamespace(g2p=g2p))
    found = to_units("こんにちは, b!", "phone", "jpn", normalize=official_text)
    # As ESPnet's pyopenjtalk_g2p, after the script's normalisation.
    assert found == "k o N n i ch i w a" and said == [("こんにちは B", False)]
    assert to_units("は", "phone", "jpn", "w a") == "w a"
    monkeypatch.setitem(sys.modules, "pyopenjtalk", None)
    with pytest.raises(RecipeError, match=r"pip install 'espnet2-lamer\[japanese\]'"):
        to_units("こんにちは", "phone", "jpn")


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
        ("１～２　ｄ＋", "12 D"),
        ("straße\t5°", "STRASSE 5°"),
    ],
)
def test_normalised_text_has_no_punctuation_of_any_script_and_is_upper_case(
    text, expected
):
    assert normalize_text(text) == expected
    assert to_units(text, "char", "eng") == expected
    assert to_units(text, "word", "eng") == expected


FORMS = {
    "composed": ("CAFÉ ガ 각 Ё ắ", "CAFE\u0301 カ\u3099 각 Е\u0308 a\u0306\u0301"),
    "width": ("OK 20 ガ", "ＯＫ　２０ ｶﾞ"),
    "presentation": ("لا fi 15 豈", "ﻻ ﬁ ⑮ \uf900"),
    "invisible": (
        "ab 我愛 می‌خواهم",
        "\ufeffa\u200b\u00adb \u202a我\u2060愛\ufe0f\u200f\u2066 می\u200c\u200cخواهم",
    ),
    "control": ("a b", "a\t\x07b\x00"),
}


@pytest.mark.parametrize("name", FORMS)
def test_texts_that_look_the_same_are_the_same(name):
    for normalize in (normalize_text, unify_spelling):
        one, other = map(normalize, FORMS[name])
        assert one == other
        assert normalize(one) == one
    # The benchmark's own rule is left alone.
    assert len({official_text(text) for text in FORMS[name]}) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [("ང་ལ་མ", 3), ("ሰላም፡ዓለም", 2), ("𐎠𐏐𐎡", 2), ("a\u00a0b\u3000c", 3)],
)
def test_what_separates_words_in_other_scripts_still_does(text, words):
    assert len(normalize_text(text).split()) == words


@pytest.mark.parametrize("text", ["น้ำ", "ນ້ຳ", "हिन्दी", "A´", "5°"])
def test_no_letter_is_taken_apart(text):
    assert normalize_text(text) == text


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
    # The unknown character stands in one word with a known one.
    assert to_units("我去食飯𪜶食", "jyutping", "yue") == (
        "ng o5 h eoi3 s ik6 f aan6 𪜶 s ik6"
    )


@pytest.mark.parametrize(
    ("simplified", "traditional"),
    [
        ("我好钟意食饭", "我好鍾意食飯"),
        ("听日会落雨", "聽日會落雨"),
        ("我哋一齐去学习广东话", "我哋一齊去學習廣東話"),
        ("边个话俾你听㗎", "邊個話俾你聽㗎"),
        # Where two characters became one, the words beside it decide.
        ("里面仲有边个呢", "裏面仲有邊個呢"),
    ],
)
def test_simplified_cantonese_is_read_as_traditional(simplified, traditional):
    units = to_units(simplified, "jyutping", "yue")
    assert units == to_units(traditional, "jyutping", "yue")
    assert count_unread([units]) == (len(units.split()), {})


def test_tokens_without_a_reading_are_counted_by_what_they_are():
    texts = [
        to_units("用KTV食飯２０", "jyutping", "yue"),
        to_units("𪜶", "pinyin", "cmn"),
    ]
    assert count_unread(texts) == (9, {"KTV": 1, "20": 1, "𪜶": 1})


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
