"""Honesty rules of the embedded corpus, checked on its plan."""

from itertools import islice

import pytest

from espnet2_lamer.data.espeak import VOICES
from espnet2_lamer.data.mini import LANGS, MINI_SETS, STAGE0_SETS
from espnet2_lamer.data.mini_plan import (
    expected_seconds,
    is_read_in_full,
    plan_utterances,
    speakers,
)

_HELD_OUT = [split for split in MINI_SETS if "dev" in split or "test" in split]


def _planned(sets, split, lang):
    """The set's utterances and a third more, in case some are shorter than planned."""
    wanted = sets[split]["minutes"].get(lang, 0.0) * 60 * 4 / 3
    utterances, seconds = [], 0.0
    for plan in plan_utterances(split, lang, sets[split]["pool"], seed=0):
        if seconds >= wanted:
            return utterances
        utterances.append(plan)
        seconds += sum(expected_seconds(s, plan.speaker) for s in plan.sentences)


def _texts(plans):
    return {sentence.text for plan in plans for sentence in plan.sentences}


def _variants(plans):
    return {plan.speaker.variant for plan in plans}


def test_forty_speakers_and_pools_share_no_timbre():
    everyone = speakers()
    assert len(everyone) == len({s.name for s in everyone}) == 40
    settings = {(s.variant, s.pitch, s.pitch_range, s.rate) for s in everyone}
    assert len(settings) == 40
    owners = {}
    for speaker in everyone:
        assert owners.setdefault(speaker.variant, speaker.pool) == speaker.pool
        assert 30 <= speaker.pitch <= 70
        assert 40 <= speaker.pitch_range <= 65
        assert 135 <= speaker.rate <= 190


@pytest.mark.parametrize("split", MINI_SETS)
def test_every_language_has_the_same_speakers(split):
    first, *others = [
        {p.speaker for p in islice(plan_utterances(split, lang, pool, 0), 60)}
        for lang in VOICES
        for pool in [MINI_SETS[split]["pool"]]
    ]
    assert first == set(speakers(MINI_SETS[split]["pool"]))
    assert all(other == first for other in others)


@pytest.mark.parametrize("lang", VOICES)
def test_mini_dev_and_test_share_nothing_with_training(lang):
    for held_out in _HELD_OUT:
        hidden = _planned(MINI_SETS, held_out, lang)
        for split in ("train", "asr_train"):
            seen = _planned(MINI_SETS, split, lang)
            assert not _texts(hidden) & _texts(seen)
            assert not _variants(hidden) & _variants(seen)


@pytest.mark.parametrize("lang", VOICES)
def test_mini_dev_and_test_share_nothing(lang):
    test = _planned(MINI_SETS, "asr_test", lang)
    for split in ("dev", "asr_dev"):
        dev = _planned(MINI_SETS, split, lang)
        assert not _texts(test) & _texts(dev)
        assert not _variants(test) & _variants(dev)


@pytest.mark.parametrize("lang", VOICES)
def test_base_and_teacher_never_saw_a_mini_dev_or_test_sentence_or_speaker(lang):
    hidden = [p for split in _HELD_OUT for p in _planned(MINI_SETS, split, lang)]
    for split, options in STAGE0_SETS.items():
        if lang not in options["minutes"]:
            continue
        seen = _planned(STAGE0_SETS, split, lang)
        assert seen
        assert not _texts(hidden) & _texts(seen)
        assert not _variants(hidden) & _variants(seen)


@pytest.mark.parametrize("lang", ["cmn", "yue"])
def test_every_planned_hanzi_is_one_the_voice_reads(lang):
    plans = _planned(MINI_SETS, "asr_train", lang)
    assert all(is_read_in_full(s) for plan in plans for s in plan.sentences)


def test_stage0_dev_follows_training_on_unseen_sentences_and_speakers():
    seen = _planned(STAGE0_SETS, "teacher_train", "yue")
    unseen = _planned(STAGE0_SETS, "teacher_dev", "yue")
    assert not _texts(seen) & _texts(unseen)
    assert not _variants(seen) & _variants(unseen)


def test_base_has_three_hours_and_the_teacher_one_per_language():
    assert STAGE0_SETS["base_train"]["minutes"]["eng"] >= 180
    assert all(STAGE0_SETS["teacher_train"]["minutes"][lang] >= 60 for lang in LANGS)


def test_base_training_repeats_a_sentence_at_most_three_times():
    counts = {}
    for plan in _planned(STAGE0_SETS, "base_train", "eng"):
        for sentence in plan.sentences:
            counts[sentence.text] = counts.get(sentence.text, 0) + 1
    assert max(counts.values()) <= 3


def test_plan_follows_the_seed_and_ids_tell_language_speaker_and_split():
    first, again, other = (
        list(islice(plan_utterances("train", "eng", "train", seed), 20))
        for seed in (0, 0, 1)
    )
    assert first == again
    assert [p.sentences for p in first] != [p.sentences for p in other]
    assert first[3].utt_id == "eng_s03_train_00003"
    assert len({plan.seed for plan in first}) == 20
