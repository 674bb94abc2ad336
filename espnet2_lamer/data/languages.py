"""Languages: codes of ISO 639-3 from what corpora write, and names for tables."""

import re
from functools import cache

from espnet2_lamer.errors import RecipeError

# Codes of BCP 47 that ISO 639-1 has given up.
_FORMER = {"iw": "heb", "in": "ind", "ji": "yid", "jw": "jav", "mo": "ron"}
_WHOLE = {"zh-min-nan": "nan", "zh-guoyu": "cmn", "zh-hakka": "hak", "zh-xiang": "hsn"}
# BCP 47: language, extended language, script, region, variants, private use.
_TAG = re.compile(
    r"(?P<language>[a-z]{2,3})(?:-(?P<extended>[a-z]{3}))?(?:-[a-z]{4})?"
    r"(?:-(?P<region>[a-z]{2}|\d{3}))?(?:-(?:[a-z0-9]{5,8}|\d[a-z0-9]{3}))*"
    r"(?:-[a-wyz0-9](?:-[a-z0-9]{2,8})+)*(?:-x(?:-[a-z0-9]{1,8})+)?"
)
# Chinese of these regions is taken for Cantonese, any other for Mandarin.
_CANTONESE = ("hk", "mo")
_LOCAL = re.compile("q[a-t][a-z]")
# Codes that are of no language.
_SPECIAL = "S"
_NEAR = 3


def language_code(name: str, where: str) -> str:
    """Return the ISO 639-3 code of a language: itself, or of a tag of BCP 47.

    Tags are those of corpora, such as ``en-US``, ``pt_br`` or ``zh-Hant-HK``; script,
    region and variant are dropped, but tell Cantonese from Mandarin. ``zh`` alone is
    Mandarin; other macrolanguages stay what they are. Codes of the range for local use,
    ``qaa`` to ``qtz``, are the user's own.

    Raises:
        RecipeError: It is neither; ``where``, file and line, comes first.
    """
    key = name.strip().lower().replace("_", "-")
    code = _of_tag(key)
    if not code:
        raise RecipeError(
            f"{where}: unknown language {name!r}; expected a code of ISO 639-3 such as "
            "eng, cmn or yue, or a tag such as en-US; a language without a code takes "
            f"one of qaa to qtz{_hint(key)}"
        )
    return code


def language_name(code: str) -> str:
    """Return the English name that ISO 639-3 has for a code; itself where it has none.

    ``deu`` gives ``German``; codes for local use have no name.
    """
    from iso639 import Language
    from iso639.language import LanguageNotFoundError

    try:
        # Without years: Modern Greek (1453-).
        return Language.from_part3(code).name.partition(" (")[0]
    except LanguageNotFoundError:
        return code


def named(code: str) -> str:
    """Return a code with its name, for tables and messages: ``deu (German)``."""
    name = language_name(code)
    return code if name == code else f"{code} ({name})"


@cache
def _of_tag(key: str) -> str:
    tag = _TAG.fullmatch(key)
    if key in _WHOLE or not tag:
        return _WHOLE.get(key, "")
    if tag["language"] == "sgn":  # of all sign languages
        return _code(tag["extended"] or "", None, None)
    return _code(tag["language"], tag["extended"], tag["region"])


def _code(language: str, extended: str | None, region: str | None) -> str:
    """Return the code of ISO 639-3, or nothing."""
    from iso639 import Language
    from iso639.language import LanguageNotFoundError

    if _LOCAL.fullmatch(language):
        return language
    found = None
    for find in (Language.from_part3, Language.from_part1, Language.from_part2b):
        try:
            found = found or find(_FORMER.get(language, language))
        except LanguageNotFoundError:
            continue
    if found is None or found.status != "A" or found.scope == _SPECIAL:
        return ""
    if extended:
        # zh-yue is yue; the rest of the tag is of it.
        inner = _code(extended, None, region)
        same = inner and Language.from_part3(inner).macrolanguage == found.part3
        return inner if same else ""
    if found.part3 == "zho":
        return "yue" if region in _CANTONESE else "cmn"
    return found.part3


def _hint(key: str) -> str:
    """Name codes that may have been meant."""
    from difflib import get_close_matches

    from iso639 import ALL_LANGUAGES

    retired = {x.part3: x for x in ALL_LANGUAGES if x.status == "R"}
    if key in retired:
        to = retired[key].retire_change_to or retired[key].retire_remedy
        return f". {key} is retired: {to or 'split, or never a language'}"
    if any(x.part3 == key and x.scope == _SPECIAL for x in ALL_LANGUAGES):
        return f". {key} is of no language: leave its speech out, or say which it is"
    active = [x for x in ALL_LANGUAGES if x.status == "A" and x.scope != _SPECIAL]
    by_name = {x.name.lower(): x.part3 for x in active}
    codes = [by_name[key]] if key in by_name else []
    # Every code has neighbours among eight thousand: those of ISO 639-1 first.
    widely = [x.part3 for x in active if x.part1]
    if len(key) == 3:
        codes += get_close_matches(key, widely, _NEAR, 0.6)
        codes += get_close_matches(key, [x.part3 for x in active], _NEAR, 0.6)
    codes += [by_name[n] for n in get_close_matches(key, by_name, _NEAR, 0.75)]
    near = list(dict.fromkeys(codes))[:_NEAR]
    return f". Near it: {', '.join(map(named, near))}" if near else ""
