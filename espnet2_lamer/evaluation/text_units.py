"""The units a transcript is scored in: characters, pinyin, jyutping, phones."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache, partial

from espnet2_lamer.errors import RecipeError

UNITS = ("char", "word", "pinyin", "jyutping", "phone", "bpe")
#: Units whose text is the normalised transcript.
PLAIN_UNITS = ("char", "word", "bpe")
#: Our own text normalisation: punctuation of every script goes.
UNICODE = "unicode"
#: ML-SUPERB's own text normalisation.
OFFICIAL = "official"
#: That of ML-SUPERB 2.0: none, since its scores ignore punctuation and case.
WRITTEN = "as written"
#: What ML-SUPERB's monolingual track does not score in characters.
OFFICIAL_UNITS = {"cmn": "pinyin", "jpn": "phone"}
#: Units of readings, and the languages that have them.
READ_UNITS = {"pinyin": ("cmn", "yue"), "jyutping": ("yue",)}
_DELETE_ASCII = str.maketrans("", "", string.punctuation)
# What ML-SUPERB's multilingual script takes for a comment: from the first bracket to
# the last one, unless a parenthesis is in between.
_BRACKETED = re.compile(r"\[[^()]*\]")
# In the names of characters that stand between words, as a space does elsewhere:
# Ethiopic, Tibetan, and of old scripts.
_SEPARATORS = ("WORDSPACE", "TSHEG", "WORD SEPARATOR", "WORD DIVIDER")
# Without a width, though no format characters: variation selectors, joiner, fillers.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u3164\uffa0\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
# Syllables may be written together when each has its tone digit.
_PINYIN = re.compile(r"(?:[a-z]+[0-5])+|[a-z]+")


class NoUnitsError(RecipeError):
    """A transcript of which nothing is left in the unit that is asked for."""


def default_unit(lang: str, official: bool = False) -> str:
    """Return the unit a language is scored in unless the user says otherwise.

    ML-SUPERB's scripts write Mandarin in pinyin phones and Japanese in phones, and
    leave every other language in characters, Cantonese too. Elsewhere than in the
    ``official`` benchmark Cantonese gets the units that are analogous to Mandarin's.
    Japanese phones need a package that is no dependency: they are asked for.
    """
    units = {"cmn": "pinyin"} if official else {"cmn": "pinyin", "yue": "jyutping"}
    return units.get(lang, "char")


def unify_spelling(text: str) -> str:
    """Give texts that look the same the same characters.

    Forms of a character become one (Unicode's NFKC, unless that takes a letter apart as
    Thai AM, or makes a space); what separates words becomes a space; what has no width
    goes: zero-width and direction marks, soft hyphens, byte order marks.
    """
    return unicodedata.normalize("NFC", "".join(map(_form, text)))


@cache
def _form(char: str) -> str:
    if char.isspace() or any(s in unicodedata.name(char, "") for s in _SEPARATORS):
        return " "
    if unicodedata.category(char) in ("Cf", "Cc") or _INVISIBLE.match(char):
        return ""
    form = unicodedata.normalize("NFKC", char)
    apart = len(form) > 1 and unicodedata.category(form[0]) in ("Zs", "Mn")
    return char if apart else form


def normalize_text(text: str) -> str:
    """Normalise a transcript as ML-SUPERB does, without silent punctuation.

    ML-SUPERB deletes the characters of ``string.punctuation`` and upper-cases.
    It keeps punctuation outside ASCII; since that is as silent as a comma, every
    character of a Unicode punctuation category is deleted here too, after
    :func:`unify_spelling` (stated departures). Spaces stay, also between Chinese
    characters; runs of white space become one space.
    """
    kept = unify_spelling(text).translate(_DELETE_ASCII)
    kept = "".join(c for c in kept if unicodedata.category(c)[0] != "P")
    return " ".join(kept.upper().split())


def official_text(text: str, brackets: bool = False) -> str:
    """Normalise a transcript exactly as ML-SUPERB's scripts do.

    The characters of ``string.punctuation`` go, the rest is upper-cased; punctuation
    outside ASCII stays. With ``brackets`` as the multilingual script, which deletes
    ``[...]`` first; the monolingual one does not.
    """
    if brackets:
        text = _BRACKETED.sub("", text)
    return " ".join(text.translate(_DELETE_ASCII).upper().split())


def as_written(text: str) -> str:
    """Keep a transcript; runs of white space become one space."""
    return " ".join(text.split())


#: ``text_norm``: what is done to a transcript, and to one of many languages:
#: :func:`normalize_text`, or what ML-SUPERB's two scripts do.
NORMALISATIONS: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    UNICODE: (normalize_text, normalize_text),
    OFFICIAL: (official_text, partial(official_text, brackets=True)),
    WRITTEN: (as_written, as_written),
}


def to_units(
    text: str,
    unit: str,
    lang: str,
    romanisation: str | None = None,
    normalize: Callable[[str], str] = normalize_text,
) -> str:
    """Turn a transcript into the text that is trained on and scored.

    Args:
        text: In its usual spelling.
        unit: ``char``, ``word`` and ``bpe``: the normalised text itself (they differ
            in how it is split). ``pinyin``: strict initial and strict final with its
            tone, as ESPnet's ``pypinyin_g2p_phone``, which ML-SUPERB uses; the neutral
            tone has no digit. ``jyutping``: onset and final with its tone.
            ``phone``: the pronunciation as it is; of Japanese without one, the phones
            of pyopenjtalk, as ML-SUPERB's scripts.
        lang: ISO 639-3 code. ``pinyin`` fits cmn and yue (for yue: Mandarin readings
            of the characters), ``jyutping`` yue.
        romanisation: The pronunciation, space-separated: pinyin or jyutping syllables
            with tone digits (pinyin: 5 neutral, v or u: for ü), or phones; preferred
            over readings looked up from the characters.
        normalize: What is done to the transcript first.

    Tokens are separated by spaces. Those without a reading (Latin words in pinyin,
    unknown characters) stay as they are, see :func:`count_unread`; only ``pinyin``
    drops bare numbers, as ESPnet does. Cantonese in simplified characters is read as
    Hong Kong's.

    Raises:
        RecipeError: The unit does not exist or does not fit the language, or ``phone``
            comes without a pronunciation.
        NoUnitsError: Nothing is left; also a RecipeError.
    """
    if unit in PLAIN_UNITS:
        result = normalize(text)
    elif unit == "pinyin" and lang == "cmn" and romanisation:
        result = _pinyin_from_syllables(unify_spelling(romanisation))
    elif unit == "pinyin" and lang in READ_UNITS[unit]:
        result = _pinyin_from_characters(normalize(text))
    elif unit == "jyutping" and lang == "yue":
        result = _jyutping(romanisation, normalize(text))
    elif unit == "phone" and romanisation:
        result = " ".join(romanisation.split())
    elif unit == "phone" and lang == "jpn":
        result = _japanese_phones(normalize(text))
    elif unit == "phone":
        raise RecipeError(
            f"unit phone: no phone string for the text {text!r}; give one, or choose "
            f"unit {default_unit(lang)}"
        )
    elif unit not in UNITS:
        raise RecipeError(f"unit {unit!r}: expected one of {', '.join(UNITS)}")
    else:
        raise RecipeError(
            f"unit {unit!r} does not fit language {lang!r}; choose {default_unit(lang)}"
        )
    if not result:
        raise NoUnitsError(
            f"text {text!r} ({lang}): nothing is left in unit {unit}; correct the "
            "transcript or drop the utterance"
        )
    return result


def _split_pinyin(syllable: str) -> list[str]:
    """Split one pinyin syllable (``lv4``) into initial and final with tone."""
    # The functions ESPnet itself calls; pypinyin has no public form of them for
    # syllables with tone digits. setup.cfg pins pypinyin, so they will not move.
    from pypinyin.style._utils import get_finals, get_initials

    base, tone = syllable, ""
    if syllable[-1].isdigit():
        base, tone = syllable[:-1], syllable[-1]
    final = get_finals(base, strict=True) + tone
    parts = (get_initials(syllable, strict=True), final)
    return [p for p in parts if p and not p.isdigit()]


def _pinyin_from_characters(text: str) -> str:
    from pypinyin import Style, pinyin

    readings = (r for piece in text.split() for r in pinyin(piece, style=Style.TONE3))
    return " ".join(token for first, *_ in readings for token in _split_pinyin(first))


def _pinyin_from_syllables(romanisation: str) -> str:
    tokens: list[str] = []
    for token in romanisation.split():
        syllable = token.lower().replace("u:", "v").replace("ü", "v")
        # Without a tone digit, upper case tells a Latin word from a neutral syllable.
        if _PINYIN.fullmatch(syllable) and (syllable[-1].isdigit() or token.islower()):
            for part in re.findall(r"[a-z]+[0-5]?", syllable):
                tokens += _split_pinyin(part.rstrip("05"))
        else:
            tokens += normalize_text(token).split()
    return " ".join(tokens)


def _jyutping(syllables: str | None, text: str) -> str:
    import pycantonese

    tokens: list[str] = []
    for token in (unify_spelling(syllables or "") or _cantonese_readings(text)).split():
        try:
            parsed = pycantonese.parse_jyutping(token.lower())
        except ValueError:
            tokens += normalize_text(token).split()
            continue
        for s in parsed:
            tokens += filter(None, (s.onset, s.nucleus + s.coda + s.tone))
    return " ".join(tokens)


def _cantonese_readings(text: str) -> str:
    from pycantonese import characters_to_jyutping

    words = characters_to_jyutping(text)
    unread = "".join(characters for characters, reading in words if not reading)
    # The dictionary is of traditional characters; text that it reads stays as it is.
    if not unread.isascii() and _simplified().convert(unread) != unread:
        words = characters_to_jyutping(_simplified().convert(text))
    readings = []
    for characters, reading in words:
        if not reading and not characters.isascii():
            # One unknown character must not take down those beside it.
            of_each = (characters_to_jyutping(char)[0] for char in characters)
            reading = " ".join(found or char for char, found in of_each)
        readings.append(reading or characters)
    return " ".join(readings)


def _japanese_phones(text: str) -> str:
    try:
        from pyopenjtalk import g2p
    except ImportError:
        raise RecipeError(
            "unit phone of jpn: the package pyopenjtalk is not installed: pip install "
            "'espnet2-lamer[japanese]', give phones (column romanisation), or choose "
            "--units jpn=char, which ML-SUPERB's monolingual score does not count"
        ) from None
    return g2p(text, kana=False) if text else ""


@cache
def _simplified():
    import opencc

    return opencc.OpenCC("s2hk")


def count_unread(texts: Iterable[str]) -> tuple[int, Counter[str]]:
    """Count the tokens of texts in pinyin or jyutping, and those without a reading.

    Readings have small letters; what stays as it was written is upper-cased.
    """
    tokens = [token for text in texts for token in text.split()]
    return len(tokens), Counter(token for token in tokens if token == token.upper())
