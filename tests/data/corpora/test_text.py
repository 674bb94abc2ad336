"""Transcripts are put on one line; spaces between hanzi are no characters."""

import pytest

from espnet2_lamer.data.corpora.prepare import clean_text, has_control_characters


@pytest.mark.parametrize(
    ("text", "lang", "expected"),
    [
        (" one\ttwo \u200b three\r", "eng", "one two three"),
        ("\ufeffone\x00two", "eng", "one two"),
        ("绿 是 阳春 烟 景", "cmn", "绿是阳春烟景"),
        ("你 好 ， 世 界", "cmn", "你好，世界"),
        ("用 AI 做 嘢", "yue", "用 AI 做嘢"),
        ("食 飯 未 呀", "yue", "食飯未呀"),
        # Another language's spaces stay, whatever its script.
        ("你 好", "eng", "你 好"),
        ("\t \n", "cmn", ""),
    ],
)
def test_white_space_is_single_and_never_between_hanzi(text, lang, expected):
    assert clean_text(text, lang) == expected


@pytest.mark.parametrize("character", ["\t", "\r", "\x00", "\x85", "\u200b", "\u2028"])
def test_control_characters_are_noticed(character):
    assert has_control_characters(f"a{character}b")
    assert not has_control_characters("a  b — c’d 你好")
