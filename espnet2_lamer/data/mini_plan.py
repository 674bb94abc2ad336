"""Plan of the embedded corpus: sentences, and who says which in which utterance."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import numpy as np

from espnet2_lamer.data.espeak import CORPUS, VOICES, engine
from espnet2_lamer.data.sampling import seed_of
from espnet2_lamer.errors import RecipeError, require

#: Pools of sentences and of speakers, with their share of the sentences. Nothing is in
#: two pools. ``stage0_dev`` follows the training of the base and the teacher only.
POOLS = {"dev": 0.08, "test": 0.10, "stage0_dev": 0.03, "train": 0.79}
#: Languages written in hanzi, without spaces.
HAN_LANGS = ("cmn", "yue")
#: Shortest and longest utterance in seconds.
MIN_SECONDS, MAX_SECONDS = 2.0, 10.0

# Package and file of texts: HSK's example sentences, Common Voice's prompts.
_HSK = ("hsk_sentences_audio", "data/sentences.json")
_COMMON_VOICE = ("pycantonese", "data/common_voice/sents.json")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0002fa1f]")
_SPANISH = "a-záéíóúüñ"
_TONE = re.compile(r"\d+")
_SYLLABLE = re.compile(r"[a-zü]+[1-5]$")
# Units are hanzi of Chinese, letters of the others: what one sentence may have.
_LENGTHS = {"eng": (6, 120), "cmn": (2, 34), "yue": (2, 34), "spa": (4, 60)}

# Timbres of each pool of speakers. Pools share no timbre: a speaker held out is not a
# known one at another pitch. Voices with "breath" in their definition are left out: the
# library computes it from uninitialised memory, so two runs differ.
_VARIANTS = {
    "train": "m1 m3 m4 m6 m7 f1 Andrea Annie max antonio Gene paul belinda aunty",
    "stage0_dev": "robert",
    "dev": "m8 f4",
    "test": "m5 steph Mike",
}
_SETTINGS_PER_VARIANT = 2

# Seconds of speech at 160 words a minute: a + b * letters or hanzi, least squares over
# 1/15 of the sentences. Only the size of a plan rests on it, never the audio.
_SECONDS = dict(
    eng=(0.14, 0.0552), cmn=(-0.04, 0.2885), yue=(-0.02, 0.2402), spa=(0.51, 0.056)
)
_MEAN_PAUSE = 0.2
_TARGET_SECONDS = (2.3, 6.1)


@dataclass(frozen=True)
class Sentence:
    """One sentence that can be synthesised."""

    lang: str
    # Normalised label: lower case words, or hanzi without punctuation. In Spanish one
    # name, of a country, language, currency or script.
    text: str
    spoken: str  # what the synthesiser gets, with punctuation
    romanisation: str  # pinyin syllables with tone digits, or empty
    pool: str  # one of POOLS


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
    found: dict[str, Sentence] = {}
    for spoken, romanisation, key in _candidates(lang):
        text = normalise(spoken, lang)
        pool = pool_of(text if key is None else key)
        found.setdefault(text, Sentence(lang, text, spoken, romanisation, pool))
    return tuple(found[text] for text in sorted(found) if _usable(found[text]))


def _candidates(lang: str) -> Iterator[tuple[str, str, str | None]]:
    """Yield what is spoken, its romanisation, and whose pool it shares (None: own)."""
    if lang == "yue":
        yield from ((spoken, "", None) for spoken in _read(*_COMMON_VOICE))
    elif lang == "spa":
        # Names of the Unicode Common Locale Data Repository.
        require("babel", CORPUS)
        from babel import Locale

        names = Locale("es")
        tables = names.territories, names.languages, names.currencies, names.scripts
        every = {name for table in tables for name in table.values()}
        yield from ((spoken, "", None) for spoken in sorted(every))
    elif lang in ("eng", "cmn"):
        records = _read(*_HSK)
        english = [record["translation"]["en"] for record in records]
        chinese = [record["chinese"] for record in records]
        readings = [record["pinyin_numbered"].lower() for record in records]
        keys = _pair_keys(
            [normalise(text, "eng") for text in english],
            [normalise(text, "cmn") for text in chinese],
        )
        if lang == "eng":
            yield from zip(english, [""] * len(keys), keys, strict=True)
        else:
            yield from zip(chinese, readings, keys, strict=True)
    else:
        raise ValueError(f"no sentences for language {lang!r}; have {sorted(VOICES)}")


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


def _read(package: str, relative: str) -> list:
    # find_spec locates the package without running its (heavy) __init__.
    require(package, CORPUS)
    path = Path(find_spec(package).submodule_search_locations[0]) / relative
    if not path.is_file():
        raise RecipeError(f"{path}: not found; reinstall the package {package}")
    return json.loads(path.read_text(encoding="utf-8"))


def _pair_keys(english: list[str], chinese: list[str]) -> list[str]:
    """Name the group of each pair: pairs that share either side belong together.

    The smallest English text is the name, so the order of the file plays no part.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    texts, first = np.unique(english, return_inverse=True)
    others, second = np.unique(chinese, return_inverse=True)
    size = len(texts) + len(others)
    edges = (np.ones(len(first)), (first, len(texts) + second))
    _, groups = connected_components(coo_array(edges, (size, size)), directed=False)
    names: dict[int, str] = {}
    for group, text in zip(groups[first], english, strict=True):
        names[group] = min(text, names.get(group, text))
    return [names[group] for group in groups[first]]


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
        syllables = list(map(_SYLLABLE.match, sentence.romanisation.split()))
        if len(syllables) != len(sentence.text) or not all(syllables):
            return False
    return "(en)" not in engine().phonemes(sentence.spoken, VOICES[sentence.lang])


@dataclass(frozen=True)
class Speaker:
    """One voice: the same in every language, so it does not tell the language."""

    name: str  # s00, s01 ...
    variant: str  # espeak's timbre
    pitch: int  # 30-70
    pitch_range: int  # 40-65
    rate: int  # words a minute, 135-190
    pool: str  # the pool of sentences it reads


@dataclass(frozen=True)
class UtterancePlan:
    """One utterance before synthesis: sentences with pauses between."""

    utt_id: str  # <lang>_<speaker>_<split>_<number>
    lang: str
    speaker: Speaker
    sentences: tuple[Sentence, ...]
    seed: int  # of its pauses, level and noise


def speakers(pool: str | None = None) -> tuple[Speaker, ...]:
    """Return the speakers of one pool, or all 40."""
    voices = [
        (owner, variant)
        for owner, variants in _VARIANTS.items()
        for variant in variants.split()
        for _ in range(_SETTINGS_PER_VARIANT)
    ]
    # Steps that share no factor with the ranges spread the settings.
    return tuple(
        Speaker(
            name=f"s{n:02d}",
            variant=variant,
            pitch=30 + 17 * n % 41,
            pitch_range=40 + 11 * n % 26,
            rate=135 + 23 * n % 56,
            pool=owner,
        )
        for n, (owner, variant) in enumerate(voices)
        if pool in (None, owner)
    )


def expected_seconds(sentence: Sentence, speaker: Speaker) -> float:
    """Return about how long ``speaker`` takes for ``sentence``, in seconds."""
    offset, slope = _SECONDS[sentence.lang]
    return (offset + slope * len(sentence.text)) * 160 / speaker.rate


def plan_utterances(
    split: str, lang: str, pool: str, seed: int
) -> Iterator[UtterancePlan]:
    """Yield the utterances of a set without end, in a fixed order.

    All sentences of the pool are used once in random order before any is used again.
    Speakers take turns.
    """
    rng = np.random.default_rng(seed_of(seed, split, lang, pool))
    own = [sentence for sentence in load_sentences(lang) if sentence.pool == pool]
    stream = (own[i] for _ in count() for i in rng.permutation(len(own)))
    voices = speakers(pool)
    upcoming = next(stream)
    for number in count():
        speaker = voices[number % len(voices)]
        target = rng.uniform(*_TARGET_SECONDS)
        chosen: list[Sentence] = []
        total = 0.0
        while total < target:
            seconds = expected_seconds(upcoming, speaker) + _MEAN_PAUSE
            if chosen and total + seconds > MAX_SECONDS - 0.5:
                break
            chosen.append(upcoming)
            total += seconds
            upcoming = next(stream)
        utt_id = f"{lang}_{speaker.name}_{split}_{number:05d}"
        spoken = tuple(filter(is_read_in_full, chosen))
        if spoken:
            yield UtterancePlan(utt_id, lang, speaker, spoken, seed_of(seed, utt_id))
