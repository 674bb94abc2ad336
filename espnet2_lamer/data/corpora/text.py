"""Transcripts of public corpora: white space, control characters, segmented hanzi."""

import re

# Control characters, line separators and marks without width.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060\ufeff]"
)
_HANZI = (
    "\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
    "\U00020000-\U0003ffff"
)
_BETWEEN_HANZI = re.compile(f"(?<=[{_HANZI}]) (?=[{_HANZI}])")
# Languages written without spaces.
_UNSPACED = ("cmn", "yue")


def has_control_characters(text: str) -> bool:
    """Whether a transcript holds tabs, other control characters or invisible marks."""
    return _CONTROL.search(text) is not None


def clean_text(text: str, lang: str) -> str:
    """Return a transcript on one line, with single spaces.

    Control characters become spaces. In Mandarin and Cantonese spaces between hanzi
    go: THCHS-30 and AISHELL-1 segment words, FLEURS separates every character,
    CommonVoice does neither, and a space would count as a character.

    Args:
        text: The transcript as the corpus has it.
        lang: ISO 639-3 code.
    """
    text = " ".join(_CONTROL.sub(" ", text).split())
    return _BETWEEN_HANZI.sub("", text) if lang in _UNSPACED else text
