"""Plan of the embedded corpus: who says which sentences in which utterance."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from espnet2_lamer.data.sampling import seed_of
from espnet2_lamer.data.texts import Sentence, is_read_in_full, load_sentences

#: Shortest and longest utterance in seconds.
MIN_SECONDS, MAX_SECONDS = 2.0, 10.0

# Timbres of each pool of speakers. Pools share no timbre: a speaker held out is not a
# known one at another pitch. Voices with "breath" in their definition are left out: the
# library computes it from uninitialised memory, so two runs differ.
_VARIANTS = {
    "train": (
        *("m1", "m3", "m4", "m6", "m7", "f1", "Andrea", "Annie"),
        *("max", "antonio", "Gene", "paul", "belinda", "aunty"),
    ),
    "stage0_dev": ("robert",),
    "dev": ("m8", "f4"),
    "test": ("m5", "steph", "Mike"),
}
_SETTINGS_PER_VARIANT = 2

# Seconds of speech at 160 words a minute: a + b * letters or hanzi, least squares over
# 1/15 of the sentences. Only the size of a plan rests on it, never the audio.
_SECONDS = {
    "eng": (0.14, 0.0552),
    "cmn": (-0.04, 0.2885),
    "yue": (-0.02, 0.2402),
    "spa": (0.51, 0.056),
}
_MEAN_PAUSE = 0.2
_TARGET_SECONDS = (2.3, 6.1)


@dataclass(frozen=True)
class Speaker:
    """One voice: the same in every language, so it does not tell the language.

    Attributes:
        name: Id, ``s00``, ``s01`` ...
        variant: espeak's timbre.
        pitch: 30-70. pitch_range: 40-65. rate: Words a minute, 135-190.
        pool: The pool of sentences it reads.
    """

    name: str
    variant: str
    pitch: int
    pitch_range: int
    rate: int
    pool: str


@dataclass(frozen=True)
class UtterancePlan:
    """One utterance before synthesis.

    Attributes:
        utt_id: ``<lang>_<speaker>_<split>_<number>``.
        lang: ISO 639-3 code.
        speaker: Who speaks.
        sentences: What is said, in order, with pauses between.
        seed: Seeds pauses, level and noise of this utterance.
    """

    utt_id: str
    lang: str
    speaker: Speaker
    sentences: tuple[Sentence, ...]
    seed: int


def speakers(pool: str | None = None) -> tuple[Speaker, ...]:
    """Return the speakers of one pool, or all 40."""
    grid = []
    for owner, variants in _VARIANTS.items():
        for variant in variants:
            for _ in range(_SETTINGS_PER_VARIANT):
                n = len(grid)
                # Steps that share no factor with the ranges spread the settings.
                grid.append(
                    Speaker(
                        name=f"s{n:02d}",
                        variant=variant,
                        pitch=30 + 17 * n % 41,
                        pitch_range=40 + 11 * n % 26,
                        rate=135 + 23 * n % 56,
                        pool=owner,
                    )
                )
    return tuple(s for s in grid if pool is None or s.pool == pool)


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
    stream = _sentence_stream(load_sentences(lang), pool, rng)
    voices = speakers(pool)
    upcoming = next(stream)
    number = 0
    while True:
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
        number += 1
        spoken = tuple(filter(is_read_in_full, chosen))
        if spoken:
            yield UtterancePlan(utt_id, lang, speaker, spoken, seed_of(seed, utt_id))


def _sentence_stream(
    sentences: tuple[Sentence, ...], pool: str, rng: np.random.Generator
) -> Iterator[Sentence]:
    own = [sentence for sentence in sentences if sentence.pool == pool]
    while True:
        for index in rng.permutation(len(own)):
            yield own[index]
