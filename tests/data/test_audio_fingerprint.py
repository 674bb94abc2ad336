"""Fingerprints recognise other encodings of a recording, and nothing else."""

import io
from functools import cache

import numpy as np
import pytest
import soundfile
import soxr

from espnet2_lamer.data.audio_fingerprint import (
    QUERY_STEP,
    THRESHOLD,
    FingerprintIndex,
    _distances,
    fingerprint,
)
from espnet2_lamer.data.espeak import engine


def distance(query, known):
    return float(_distances(query, known.bits[None], known.active[None])[0])


_SENTENCES = [
    "The old man walked slowly along the river in the morning sun.",
    "She never told anybody where the letters had come from.",
    "A cold wind from the north brought snow to the mountain villages.",
    "They were waiting for the last train when the lights went out.",
    "Nobody could remember the name of the little house by the sea.",
    "He opened the window and listened to the music in the street.",
]


@cache
def _speech(text, variant="m3"):
    """One speaker's reading of a sentence, with noise, cut to 3 s."""
    espeak = engine()
    espeak.reset()
    samples, _ = espeak.synthesise(text, "en-us", variant, rate=150)
    samples = np.resize(samples, 48000).astype(np.float32)
    noise = np.random.default_rng(len(text)).standard_normal(len(samples))
    return 0.5 * samples + 1e-3 * noise.astype(np.float32)


def _encoded(samples, rate=16000, delay=0, gain_db=0.0, **options):
    """Encode, decode, bring back to 16 kHz; ``delay`` in samples at 16 kHz."""
    samples = samples * np.float32(10 ** (gain_db / 20))
    if rate != 16000:
        samples = soxr.resample(samples, 16000, rate)
    with io.BytesIO() as file:
        soundfile.write(file, samples, rate, **options)
        file.seek(0)
        decoded = soundfile.read(file, dtype="float32")[0]
    if rate != 16000:
        decoded = soxr.resample(decoded, rate, 16000)
    return np.concatenate(
        [np.zeros(max(0, delay), np.float32), decoded[max(0, -delay) :]]
    )


_MP3 = {"format": "MP3", "subtype": "MPEG_LAYER_III"}
_COPIES = {
    "louder": {"format": "FLAC", "gain_db": 1.0},
    "quieter": {"format": "FLAC", "gain_db": -20.0},
    "mp3": _MP3 | {"compression_level": 0.5, "gain_db": -1.0},
    "mp3 48 kHz": _MP3 | {"rate": 48000, "compression_level": 0.8},
    "ogg": {"format": "OGG", "subtype": "VORBIS", "gain_db": 1.0},
    "opus": {"format": "OGG", "subtype": "OPUS", "gain_db": -1.0},
    "telephone": {"format": "WAV", "subtype": "ULAW", "rate": 8000},
    # Half a hop, the worst shift; and an MP3 encoder's delay at 32 kHz.
    "shifted": {"format": "FLAC", "delay": 160},
    "mp3 with delay": _MP3 | {"rate": 32000, "delay": 552, "compression_level": 0.8},
    "cut by 0.05 s": {"format": "FLAC", "delay": -800},
}


@pytest.mark.parametrize("copy", _COPIES)
def test_copies_are_recognised(copy):
    for text in _SENTENCES:
        original = _speech(text)
        changed = _encoded(original, **_COPIES[copy])
        found = distance(fingerprint(changed, QUERY_STEP), fingerprint(original))
        assert found <= THRESHOLD, (text, found)


def test_other_sentences_of_one_speaker_with_one_length_are_not():
    known = [fingerprint(_speech(text)) for text in _SENTENCES]
    for i, text in enumerate(_SENTENCES):
        query = fingerprint(_speech(text), QUERY_STEP)
        found = [distance(query, other) for other in known]
        assert found[i] < 0.01
        assert min(found[:i] + found[i + 1 :]) > THRESHOLD + 0.1


def test_another_speaker_s_reading_of_the_sentence_is_not():
    for text in _SENTENCES:
        query = fingerprint(_speech(text, "f2"), QUERY_STEP)
        assert distance(query, fingerprint(_speech(text))) > THRESHOLD


def test_the_index_finds_what_the_distance_finds():
    generator = np.random.default_rng(0)
    seconds = generator.choice([2.5, 2.56, 2.64, 3.0], 40)
    audio = [
        generator.standard_normal(round(16000 * s)).astype(np.float32) for s in seconds
    ]
    prints = [fingerprint(samples) for samples in audio]
    index = FingerprintIndex(prints, seconds)
    for i, samples in enumerate(audio):
        query = fingerprint(samples, QUERY_STEP)
        expected = [
            j
            for j in range(40)
            if abs(seconds[i] - seconds[j]) <= 0.1
            and distance(query, prints[j]) <= THRESHOLD
        ]
        assert sorted(j for j, _ in index.search(query, seconds[i])) == expected == [i]
        assert index.search(query, seconds[i] + 0.2) == []


def test_silence_and_clips_of_a_moment_match_nothing():
    short = fingerprint(np.ones(1000, np.float32))
    silence = fingerprint(np.zeros(48000, np.float32), QUERY_STEP)
    speech = fingerprint(_speech(_SENTENCES[0]))
    assert len(short.bits) == 0
    assert distance(silence, speech) > THRESHOLD
    assert distance(silence, fingerprint(np.zeros(48000, np.float32))) == 1
    index = FingerprintIndex([short, speech], [0.06, 3.0])
    assert index.search(fingerprint(np.ones(1000, np.float32), QUERY_STEP), 0.06) == []
    assert FingerprintIndex([], []).search(silence, 3.0) == []
