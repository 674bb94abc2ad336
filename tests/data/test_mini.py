"""Sets of the embedded corpus as they are written."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet2_lamer.data import mini
from espnet2_lamer.data.mini import build_mini, build_set
from espnet2_lamer.data.mini_plan import load_sentences, speakers
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table


def _files(root):
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in sorted(Path(root).rglob("*"))
        if p.is_file()
    }


def _build(folder, nj=1, **changes):
    recipe = {"split": "train", "lang": "cmn", "minutes": 3.5, "pool": "train"}
    recipe |= {"min_utterances": 0, "seed": 0, "audio": "audio/x"}
    folder.mkdir(exist_ok=True)
    previous = os.getcwd()
    os.chdir(folder)
    try:
        return build_set("x", {**recipe, **changes}, nj)
    finally:
        os.chdir(previous)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    return folder, _build(folder)


def test_any_number_of_processes_gives_the_same_bytes(corpus, tmp_path):
    folder, _ = corpus
    _build(tmp_path, nj=2)
    assert _files(tmp_path) == _files(folder)


def test_a_set_holds_what_it_reports(corpus):
    folder, report = corpus
    samples = read_table(folder / "x/utt2num_samples")
    assert report["utterances"] == len(samples)
    minutes = sum(map(int, samples.values())) / 16000 / 60
    assert report["minutes"] == pytest.approx(minutes, abs=1e-3)
    # One utterance at most beyond what was asked for.
    assert 3.5 <= minutes < 3.5 + 10 / 60


def test_audio_is_16_khz_mono_flac_of_2_to_10_seconds_without_clipping(corpus):
    folder, _ = corpus
    samples = read_table(folder / "x/utt2num_samples")
    peaks = []
    for utt, path in read_table(folder / "x/wav.scp").items():
        info = soundfile.info(folder / path)
        assert (info.samplerate, info.channels) == (16000, 1)
        assert (info.format, info.subtype) == ("FLAC", "PCM_16")
        assert info.frames == int(samples[utt])
        assert 2.0 <= info.duration <= 10.0
        peaks.append(np.abs(soundfile.read(folder / path)[0]).max())
    assert max(peaks) < 0.99
    assert np.std(peaks) > 0.1  # level differs by utterance


def test_phones_lie_inside_their_utterance_and_in_order(corpus):
    folder, _ = corpus
    samples = read_table(folder / "x/utt2num_samples")
    last = dict.fromkeys(samples, 0.0)
    for line in (folder / "x/phones.ctm").read_text().splitlines():
        utt, channel, start, duration, phone = line.split(" ")
        assert channel == "1" and phone
        # Times are rounded to a millisecond each.
        assert float(start) >= last[utt] - 0.0011
        last[utt] = float(start) + float(duration)
        assert last[utt] <= int(samples[utt]) / 16000 + 0.001
    assert all(end > 1.0 for end in last.values())


def test_tables_cover_every_utterance(corpus):
    folder, _ = corpus
    utts = list(read_table(folder / "x/wav.scp"))
    assert utts == sorted(utts)
    for name in ("text", "utt2spk", "utt2lang", "romanisation"):
        assert list(read_table(folder / "x" / name)) == utts
    assert set(read_table(folder / "x/utt2lang").values()) == {"cmn"}
    names = {speaker.name for speaker in speakers("train")}
    assert set(read_table(folder / "x/utt2spk").values()) <= names
    text = read_table(folder / "x/text")
    for utt, syllables in read_table(folder / "x/romanisation").items():
        assert len(syllables.split()) == len(text[utt])


def test_noise_is_25_to_40_db_below_the_speech():
    speech = np.sin(np.arange(32000) * 0.3).astype(np.float32)
    levels = []
    for seed in range(20):
        noisy = mini._vary(speech, np.random.default_rng(seed))
        gain = noisy @ speech / (speech @ speech)
        noise = noisy - gain * speech
        levels.append(10 * np.log10(np.mean((gain * speech) ** 2) / np.mean(noise**2)))
    assert 24.5 < min(levels) < max(levels) < 40.5
    assert max(levels) - min(levels) > 8


def test_a_finished_set_is_kept_and_another_recipe_replaces_it(tmp_path):
    _build(tmp_path, minutes=0.3)
    before = (tmp_path / "x/wav.scp").stat().st_mtime_ns
    _build(tmp_path, minutes=0.3)
    assert (tmp_path / "x/wav.scp").stat().st_mtime_ns == before
    report = _build(tmp_path, minutes=0.3, min_utterances=7)
    assert report["utterances"] == 7
    assert len(list((tmp_path / "audio/x").iterdir())) == 7


def test_an_interrupted_set_leaves_no_data_directory(tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(mini, "_write_data_dir", fail)
    with pytest.raises(KeyboardInterrupt):
        _build(tmp_path, minutes=0.1)
    assert [p.name for p in tmp_path.iterdir()] == ["audio"]


def test_the_whole_corpus_has_every_set_in_every_language(tmp_path):
    report = build_mini(tmp_path, minutes_scale=0.01)
    assert sorted(report) == sorted(
        f"{split}_{lang}"
        for split in ("train", "dev", "asr_train", "asr_dev", "asr_test")
        for lang in ("eng", "cmn", "yue")
    )
    utts = [u for name in report for u in read_table(tmp_path / name / "wav.scp")]
    assert len(utts) == len(set(utts))
    assert mini.MINI_SETS["asr_test"]["min_utterances"] >= 60


def test_a_fourth_language_is_made_when_it_is_asked_for(tmp_path):
    report = build_mini(tmp_path, minutes_scale=0.01, langs=["spa"])
    assert sorted(report) == [
        f"{split}_spa" for split in ("asr_dev", "asr_test", "asr_train", "dev", "train")
    ]
    known = {word for name in load_sentences("spa") for word in name.text.split()}
    labels = read_table(tmp_path / "train_spa" / "text").values()
    assert all(set(label.split()) <= known for label in labels)
    with pytest.raises(RecipeError, match="found language 'deu', expected some of eng"):
        build_mini(tmp_path, langs=["eng", "deu"])
