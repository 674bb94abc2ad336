"""Sentences of the embedded corpus."""

from collections import Counter

import pytest

from espnet2_lamer.data import mini_plan as texts
from espnet2_lamer.data.espeak import VOICES, Espeak, engine
from espnet2_lamer.data.mini_plan import POOLS, load_sentences, normalise, pool_of


def test_text_loses_case_punctuation_and_foreign_signs():
    assert normalise("It\u2019s 'fine' - isn't it?", "eng") == "it's fine isn't it"
    assert normalise("老师，您好！ABC", "cmn") == "老师您好"
    assert normalise("Dólar (EE. UU.), año 1", "spa") == "dólar ee uu año"


def test_pool_depends_on_the_text_alone():
    # The digest's first 48 bits as a fraction, against the cumulated shares.
    assert [pool_of(t) for t in ("a", "b")] == [pool_of(t) for t in ("a", "b")]
    counts = Counter(pool_of(f"sentence {n}") for n in range(20000))
    for pool, share in POOLS.items():
        assert counts[pool] / 20000 == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("lang", VOICES)
def test_every_text_is_in_one_pool_only(lang):
    sentences = load_sentences(lang)
    least = 1000 if lang == "spa" else 4000
    assert len({s.text for s in sentences}) == len(sentences) > least
    assert all(s.text == normalise(s.spoken, lang) for s in sentences)


def test_a_sentence_and_its_translation_share_a_pool():
    english = {s.text: s.pool for s in load_sentences("eng")}
    chinese = {s.text: s.pool for s in load_sentences("cmn")}
    pairs = [
        (normalise(r["translation"]["en"], "eng"), normalise(r["chinese"], "cmn"))
        for r in texts._read(*texts._HSK)
    ]
    both = [(e, c) for e, c in pairs if e in english and c in chinese]
    assert len(both) > 4000
    assert all(english[e] == chinese[c] for e, c in both)


def test_pairs_that_share_a_side_form_one_group_in_any_order():
    pairs = [("b", "甲"), ("a", "乙"), ("b", "乙"), ("c", "丙")]
    keys = dict(zip(pairs, texts._pair_keys(*zip(*pairs, strict=True)), strict=True))
    assert keys == {
        ("b", "甲"): "a",
        ("a", "乙"): "a",
        ("b", "乙"): "a",
        ("c", "丙"): "c",
    }
    backwards = pairs[::-1]
    found = texts._pair_keys(*zip(*backwards, strict=True))
    assert dict(zip(backwards, found, strict=True)) == keys


@pytest.mark.parametrize("lang", ["cmn", "yue"])
def test_no_sentence_is_read_with_english_letters(lang):
    spoken = [s.spoken for s in load_sentences(lang)]
    assert not any("(en)" in engine().phonemes(s, VOICES[lang]) for s in spoken[::20])


def test_a_sentence_read_with_an_english_letter_is_dropped(monkeypatch):
    monkeypatch.setattr(
        Espeak, "phonemes", lambda self, text, voice: "w'o214_| (en)'eI(cmn)"
    )
    assert not texts._usable(texts.Sentence("cmn", "我是", "我是。", "wo3 shi4", "dev"))


@pytest.mark.parametrize(
    "lang, text", [("cmn", "我是\U0002a6d6"), ("yue", "你有嘢暪住我呀")]
)
def test_a_hanzi_the_voice_does_not_know_is_noticed(lang, text):
    known = {"cmn": "我是", "yue": "你有嘢住我呀"}[lang]
    assert texts.is_read_in_full(texts.Sentence(lang, known, known, "", "dev"))
    assert not texts.is_read_in_full(texts.Sentence(lang, text, text, "", "dev"))


def test_mandarin_has_one_pinyin_syllable_per_hanzi():
    for sentence in load_sentences("cmn"):
        assert len(sentence.romanisation.split()) == len(sentence.text)
