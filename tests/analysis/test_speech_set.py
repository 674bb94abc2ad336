"""What an analysis listens to: a sample of each language, refused where it is amiss."""

import numpy as np
import pytest
import soundfile

from espnet2_lamer.analysis.listening import (
    MAX_SECONDS,
    phones_of,
    read_speech_set,
    read_waveform,
)
from espnet2_lamer.errors import RecipeError


@pytest.fixture
def data(tmp_path):
    """Six utterances of two languages, two speakers."""
    lines = {"wav.scp": [], "utt2lang": [], "utt2spk": []}
    for lang in ("eng", "yue"):
        for i in range(6):
            utt = f"{lang}_{i}"
            path = tmp_path / f"{utt}.wav"
            soundfile.write(path, np.sin(np.arange(1600) / (3 + i)) / 2, 16_000)
            lines["wav.scp"].append(f"{utt} {path}")
            lines["utt2lang"].append(f"{utt} {lang}")
            lines["utt2spk"].append(f"{utt} s{i % 2}")
    for name, rows in lines.items():
        (tmp_path / name).write_text("\n".join(rows) + "\n")
    return tmp_path


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_at_most_max_utts_of_each_language_are_chosen_by_the_seed(data):
    found = read_speech_set(data, max_utts=4)
    assert {x: len(u) for x, u in found.utterances.items()} == {"eng": 4, "yue": 4}
    assert found.available == {"eng": 6, "yue": 6}
    assert found.utterances == read_speech_set(data, max_utts=4).utterances
    assert found.utterances != read_speech_set(data, max_utts=4, seed=1).utterances
    assert found.speakers_known and found.confounded is None


def test_a_speaker_per_utterance_is_no_known_speaker(data):
    rows = [line.split()[0] for line in (data / "utt2spk").read_text().splitlines()]
    (data / "utt2spk").write_text("".join(f"{u} {u}\n" for u in rows))
    assert not read_speech_set(data).speakers_known


def test_sources_that_tell_the_language_are_reported(data):
    rows = (data / "utt2lang").read_text()
    (data / "utt2source").write_text(rows)
    assert read_speech_set(data).confounded is True
    (data / "utt2source").write_text(rows.replace("yue\n", "eng\n"))
    assert read_speech_set(data).confounded is False


def test_a_manifest_gives_the_same_utterances(data):
    lines = ["utt_id\tpath\tlang\tspeaker"]
    for lang, group in read_speech_set(data).utterances.items():
        for u in group:
            lines.append(f"{u.utt_id}\t{u.path}\t{lang}\t{u.speaker}")
    (data / "speech.tsv").write_text("\n".join(lines) + "\n")
    table = [
        [(u.utt_id, u.path, u.lang, u.speaker) for u in group]
        for source in (data, data / "speech.tsv")
        for group in read_speech_set(source).utterances.values()
    ]
    assert table[:2] == table[2:]


def test_waveforms_are_16_khz_and_of_bounded_length(data):
    utterance = read_speech_set(data).utterances["eng"][0]
    samples, cut = read_waveform(utterance)
    assert samples.dtype == np.float32 and len(samples) == 1600 and not cut
    long = np.sin(np.arange(8000 * (MAX_SECONDS + 1)))
    soundfile.write(utterance.path, long, 8000)
    samples, cut = read_waveform(utterance)
    assert len(samples) == MAX_SECONDS * 16_000 and cut


def test_phones_end_where_the_audio_was_cut(data):
    (data / "phones.ctm").write_text("eng_0 1 0.0 0.5 a\n")
    speech = read_speech_set(data)
    utterance = next(u for u in speech.utterances["eng"] if u.utt_id == "eng_0")
    whole = phones_of(speech, utterance, 8000, cut=False)
    # 0.5 s: frames whose centre, sample 320 t + 200, is before sample 8000.
    assert whole == ["a"] * 25
    assert phones_of(speech, utterance, 3600, cut=True) == ["a"] * 11
    assert phones_of(speech, speech.utterances["yue"][0], 3600, cut=True) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "utt2lang").unlink(), "utt2lang: file not found"),
        (lambda d: (d / "wav.scp").unlink(), "wav.scp: file not found"),
        (lambda d: edit(d / "utt2lang", "eng_3 eng", "eng_3 xx1"), "unknown language"),
        (
            lambda d: edit(d / "utt2lang", "eng_3 eng\n", ""),
            "no line for utterance 'eng_3'",
        ),
        (
            lambda d: [
                edit(d / "utt2lang", f"eng_{i} eng", f"eng_{i} cmn") for i in range(3)
            ],
            "language cmn has 3 utterance.*expected 4 or more",
        ),
    ],
)
def test_data_that_are_amiss_are_refused_by_name(data, change, message):
    change(data)
    with pytest.raises(RecipeError, match=message):
        read_speech_set(data)


def test_options_that_do_not_fit_are_refused(data):
    with pytest.raises(RecipeError, match="no utterance of language deu.*eng, yue"):
        read_speech_set(data, ["deu"])
    with pytest.raises(RecipeError, match="unknown language 'english'"):
        read_speech_set(data, ["english"])
    with pytest.raises(RecipeError, match="--max_utts: found 3, expected 4"):
        read_speech_set(data, max_utts=3)
    with pytest.raises(RecipeError, match="nowhere: manifest not found"):
        read_speech_set(data / "nowhere")


def test_audio_that_is_missing_is_named(data):
    utterance = read_speech_set(data).utterances["eng"][0]
    (data / f"{utterance.utt_id}.wav").unlink()
    with pytest.raises(RecipeError, match=f"{utterance.utt_id}.*file not found"):
        read_waveform(utterance)
