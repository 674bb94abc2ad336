"""The synthesiser: samples, phones, repeatability."""

import hashlib
import multiprocessing

import numpy as np
import pytest

from espnet2_lamer.data.espeak import VOICES, engine
from espnet2_lamer.data.mini_plan import speakers

_TEXTS = {
    "eng": "Hello, teacher! How are you?",
    "cmn": "你好，很高兴认识你。",
    "yue": "一但風聲鶴唳就限制自己自由",
    "spa": "dólar estadounidense",
}


def _digest(variant: str) -> str:
    espeak = engine()
    digest = hashlib.sha256()
    for lang, text in _TEXTS.items():
        espeak.reset()
        digest.update(espeak.synthesise(text, VOICES[lang], variant)[0].tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("lang", VOICES)
def test_phones_lie_inside_the_audio_and_in_order(lang):
    samples, phones = engine().synthesise(_TEXTS[lang], VOICES[lang], "m3")
    assert samples.dtype == np.float32 and np.isfinite(samples).all()
    assert len(phones) > 10
    end_before = 0.0
    for name, start, end in phones:
        assert name and not name.startswith("_") and name[0] not in "',"
        assert end_before <= start < end <= len(samples) / 16000
        end_before = end


def test_phones_cover_the_speech_and_pauses_do_not():
    samples, phones = engine().synthesise(_TEXTS["eng"], "en-us", "m3")
    inside = np.zeros(len(samples), bool)
    for _, start, end in phones:
        inside[round(start * 16000) : round(end * 16000)] = True
    power = np.square(samples, dtype=np.float64)
    assert power[inside].mean() > 100 * power[~inside].mean()


def test_a_reset_engine_forgets_what_it_said_before():
    espeak = engine()
    first = _digest("m1")
    espeak.synthesise("Some other words.", "en-us", "f1")
    assert _digest("m1") == first


def test_every_timbre_sounds_the_same_in_another_process():
    variants = sorted({speaker.variant for speaker in speakers()})
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        elsewhere = pool.map(_digest, variants)
    assert elsewhere == [_digest(variant) for variant in variants]
    assert len(set(elsewhere)) == len(variants)


def test_unknown_voice_is_refused():
    with pytest.raises(ValueError, match="no voice 'klingon-x'"):
        engine().synthesise("Hello", "klingon-x")
