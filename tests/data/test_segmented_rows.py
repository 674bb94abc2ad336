"""Recordings of a manifest become utterances of sets, once."""

import json

import numpy as np
import pytest
import soundfile

from espnet2_lamer.data import segmented_rows
from espnet2_lamer.data.manifest import prepare_manifest
from espnet2_lamer.data.segmented_rows import LISTING, REPORT, Segmenting
from espnet2_lamer.data.segments import read_segments, read_wavs
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table
from tests.heard import RATE, hear


@pytest.fixture
def heard(monkeypatch):
    """Hear speech wherever samples are not zero; returns what was listened to."""
    calls = []

    def listen(path):
        calls.append(path)
        return hear(path)

    monkeypatch.setattr(segmented_rows, "hear", listen)
    return calls


@pytest.fixture
def corpus(tmp_path):
    """A manifest of two radio recordings, one silent one and one short utterance."""

    def write(name, speech, seconds):
        samples = np.zeros(round(seconds * RATE))
        for start, end in speech:
            samples[round(start * RATE) : round(end * RATE)] = 0.3
        soundfile.write(tmp_path / name, samples, RATE)

    write("one.wav", [(1, 11), (14, 34), (38, 39)], 40)
    write("two.wav", [(5, 25), (30, 50)], 60)
    write("none.wav", [], 50)
    write("short.wav", [(0, 9)], 9)
    rows = [
        "one\tone.wav\txho\tsome words\tann",
        "two\ttwo.wav\txho\t\t",
        "none\tnone.wav\txho\t\t",
        "short\tshort.wav\teng\tits own words\tbob",
    ]
    path = tmp_path / "manifest.tsv"
    header = "utt_id\tpath\tlang\ttext\tspeaker"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path, write


VAD = Segmenting("vad")
#: What is spoken in the two recordings, with 0.1 s around.
EXPECTED = {"one": [(0.9, 11.1), (13.9, 34.1)], "two": [(4.9, 25.1), (29.9, 50.1)]}


def parts_of_sets(data):
    """Utterance to recording, start and end of all sets together."""
    found = {}
    for path in data.glob("*/segments"):
        found |= read_segments(path)
    return found


def test_long_recordings_are_cut_and_short_utterances_left_alone(
    corpus, heard, tmp_path, caplog
):
    manifest, _ = corpus
    data = tmp_path / "data"
    stats = prepare_manifest(manifest, data, segmenting=VAD)
    found = parts_of_sets(data)
    times = {}
    for utt, (recording, (start, end)) in found.items():
        name, first, last = utt.rsplit("-", 2)
        assert name == recording
        assert (int(first) / 100, int(last) / 100) == (start, end)
        times.setdefault(name, []).append((start, end))
    for name, expected in EXPECTED.items():
        assert np.allclose(sorted(times[name]), expected, atol=0.07)
    assert (stats["rows"], stats["used"], stats["utterances"]) == (4, 4, 5)
    short = next(path.parent for path in data.glob("*_eng/wav.scp"))
    assert read_table(short / "text") == {"short": "its own words"}
    assert not (short / "segments").exists()
    # A recording is its own speaker where none is known.
    speakers = {}
    for path in data.glob("*_xho/utt2spk"):
        speakers |= read_table(path)
    known = {utt: utt.partition("-")[0].replace("one", "ann") for utt in found}
    assert speakers == known
    entry = json.loads((data / REPORT).read_text())["languages"]["xho"]
    assert entry["recordings"] == 3 and entry["without_speech"] == 1
    assert (
        entry["texts_lost"] == 1 and "the text of 1 recordings is lost" in caplog.text
    )
    assert entry["hours"] == pytest.approx(150 / 3600, abs=1e-4)
    assert entry["speech_hours"] == pytest.approx(70.8 / 3600, abs=2e-4)
    assert entry["too_short_hours"] == pytest.approx(1.2 / 3600, abs=2e-4)
    total = sum(v for k, v in entry.items() if k.endswith("_hours"))
    assert total == pytest.approx(entry["hours"], abs=5e-4)
    lines = (data / LISTING).read_text().splitlines()
    assert [line.split("\t")[0] for line in lines[1:]] == ["one", "two", "none"]


def test_a_recording_is_heard_again_only_when_it_or_the_limits_change(
    corpus, heard, tmp_path
):
    manifest, write = corpus
    data = tmp_path / "data"
    prepare_manifest(manifest, data, segmenting=VAD)
    first = parts_of_sets(data)
    assert len(heard) == 3
    prepare_manifest(manifest, data, segmenting=VAD)
    assert len(heard) == 3 and parts_of_sets(data) == first
    write("two.wav", [(5, 25)], 60)
    prepare_manifest(manifest, data, segmenting=VAD)
    assert len(heard) == 4 and len(parts_of_sets(data)) == len(first) - 1
    prepare_manifest(manifest, data, segmenting=Segmenting("vad", max_duration=15.0))
    assert len(heard) == 7
    lengths = [end - start for _, (start, end) in parts_of_sets(data).values()]
    assert max(lengths) <= 15.0
    # What was found of files that are not used any more goes.
    assert len(list((data / "segmentation").iterdir())) == 3
    # Without segmentation there is nothing to report.
    prepare_manifest(manifest, data)
    assert not (data / REPORT).exists() and not (data / LISTING).exists()
    assert not parts_of_sets(data)


def test_a_run_that_was_stopped_goes_on(corpus, heard, tmp_path, monkeypatch):
    manifest, _ = corpus
    hear = segmented_rows.hear

    def dies(path):
        if path.endswith("none.wav"):
            raise KeyboardInterrupt
        return hear(path)

    monkeypatch.setattr(segmented_rows, "hear", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare_manifest(manifest, tmp_path / "data", segmenting=VAD)
    monkeypatch.setattr(segmented_rows, "hear", hear)
    del heard[:]
    prepare_manifest(manifest, tmp_path / "data", segmenting=VAD)
    assert [path.rpartition("/")[2] for path in heard] == ["none.wav"]


def test_a_damaged_recording_stops_the_run_or_is_counted(corpus, heard, tmp_path):
    manifest, _ = corpus
    path = tmp_path / "two.wav"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(RecipeError, match=r"1 of 3 [\s\S]*two.wav: truncated"):
        prepare_manifest(manifest, tmp_path / "data", segmenting=VAD)
    lenient = Segmenting("vad", max_bad_audio=50.0)
    prepare_manifest(manifest, tmp_path / "data", segmenting=lenient)
    report = json.loads((tmp_path / "data" / REPORT).read_text())
    assert report["languages"]["xho"]["unusable"] == 1
    assert "truncated" in (tmp_path / "data/skipped_recordings.tsv").read_text()


def test_a_language_without_speech_is_refused(corpus, heard, tmp_path):
    manifest, write = corpus
    for name in ("one.wav", "two.wav"):
        write(name, [], 50)
    with pytest.raises(RecipeError, match="no speech of language xho is left"):
        prepare_manifest(manifest, tmp_path / "data", segmenting=VAD)


def test_a_part_that_is_too_long_is_cut_inside_its_times(corpus, heard, tmp_path):
    manifest, _ = corpus
    manifest.write_text(
        "utt_id\tpath\tlang\tstart\tend\nhalf\ttwo.wav\txho\t20\t55\nrest\ttwo.wav\txho\t0\t3\n"
    )
    prepare_manifest(manifest, tmp_path / "data", segmenting=VAD)
    found = parts_of_sets(tmp_path / "data")
    times = sorted(times for _, times in found.values())
    assert np.allclose(times, [(0, 3), (20, 25.1), (29.9, 50.1)], atol=0.07)
    assert "half-0002000-0002512" in found or "half-0002000-0002510" in found


@pytest.mark.parametrize("folder", [False, True])
def test_kaldi_s_segments_are_taken_with_their_texts(corpus, tmp_path, folder, caplog):
    manifest, _ = corpus
    where = tmp_path
    if folder:
        where = tmp_path / "audio" / "xho"
        where.mkdir(parents=True)
        for name in ("one.wav", "two.wav"):
            (tmp_path / name).rename(where / name)
        manifest = where.parent
    (where / "segments").write_text("a one 1 11\nb one.wav 14 34\nc two 30 -1\n")
    (where / "text").write_text("a hello there\nc bye\n")
    (where / "utt2spk").write_text("a ann\nb ben\nc ann\n")
    way = Segmenting("file")
    stats = prepare_manifest(manifest, tmp_path / "data", ["xho"], segmenting=way)
    assert stats["utterances"] == 3
    found = parts_of_sets(tmp_path / "data")
    assert {utt: times for utt, (_, times) in found.items()} == {
        "a": (1.0, 11.0),
        "b": (14.0, 34.0),
        "c": (30.0, None),
    }
    texts, wavs = {}, {}
    for split in (tmp_path / "data").glob("*_xho"):
        wavs |= read_wavs(split)
        texts |= read_table(split / "text") if (split / "text").exists() else {}
    assert texts == {"a": "hello there", "c": "bye"}
    assert wavs["a"].endswith("one.wav#t=1.0,11.0")
    if not folder:
        assert "no line for 1 of 3 recordings" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file segments beside it"),
        ("a one 1\n", "segments:1: found 3 words"),
        (
            "a three 1 2\n",
            "none of 1 segments is of a recording.*'a of three'|a of thr",
        ),
        ("a one 5 4\n", "segments:1: start '5', end '4'"),
    ],
)
def test_segments_that_do_not_fit_are_refused(corpus, tmp_path, content, message):
    manifest, _ = corpus
    if content:
        (tmp_path / "segments").write_text(content)
    with pytest.raises(RecipeError, match=message):
        prepare_manifest(manifest, tmp_path / "data", segmenting=Segmenting("file"))
    assert not list((tmp_path / "data").glob("*_xho"))
