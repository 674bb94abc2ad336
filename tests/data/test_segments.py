"""Data directories whose utterances are parts of recordings."""

import numpy as np
import pytest
import soundfile

from espnet2_lamer.data.audio import SkippedAudio, header_seconds
from espnet2_lamer.data.converting import prepare_audio
from espnet2_lamer.data.formatting import collect_set
from espnet2_lamer.data.manifest import prepare_manifest
from espnet2_lamer.data.segments import (
    part_of,
    read_segments,
    read_wavs,
    recording_and_times,
)
from espnet2_lamer.data.sets import Utterance, write_set
from espnet2_lamer.data.sources import READERS, Reading, Source
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table


@pytest.fixture
def recording(tmp_path):
    """Write 20 s in which sample n tells its own place; returns path and samples."""

    def make(suffix=".wav", rate=16000, channels=1):
        generator = np.random.default_rng(3)
        samples = generator.uniform(-0.5, 0.5, (20 * rate, channels))
        path = tmp_path / f"radio one{suffix}"
        options = {"format": "OGG", "subtype": "OPUS"} if suffix == ".opus" else {}
        soundfile.write(path, samples, rate, **options)
        return path, samples

    return make


@pytest.mark.parametrize("times", [(0.0, None), (1.5, 4.25), (0.0, 3.0), (2.0, None)])
def test_a_part_s_path_is_read_as_it_was_written(times):
    path = part_of("/a b/c#t=x.wav", *times)
    known = None if times == (0.0, None) else times
    assert recording_and_times(path) == ("/a b/c#t=x.wav", known)


def test_a_set_of_parts_has_a_line_per_recording_and_kaldi_s_segments(tmp_path):
    where = {"a": (0.5, 3.0), "b": (3.0, 7.123456), "c": (None, None)}
    name = {"a": "one two", "b": "one two", "c": "c"}
    rows = [
        Utterance(utt, f"/x/{name[utt]}.wav", "eng", start=start, end=end)
        for utt, (start, end) in where.items()
    ]
    rows.append(Utterance("d", "/y/one two.wav", "eng", start=1.0))
    write_set(tmp_path / "set", rows)
    wavs = read_table(tmp_path / "set/wav.scp")
    assert sorted(wavs.values()) == ["/x/c.wav", "/x/one two.wav", "/y/one two.wav"]
    assert wavs["one_two"] == "/x/one two.wav" and wavs["c"] == "/x/c.wav"
    found = read_segments(tmp_path / "set/segments")
    assert found["b"] == ("one_two", (3.0, 7.123456))
    assert read_table(tmp_path / "set/segments")["c"] == "c 0.0 -1"
    assert read_wavs(tmp_path / "set") == {row.utt_id: row.audio for row in rows}
    assert read_table(tmp_path / "set/utt2lang").keys() == {*"abcd"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a rec 1.0", "found 3 words, expected 4"),
        ("a rec 2 1", "start '2', end '1'; expected seconds"),
        ("a rec -1 3", "start '-1'"),
        ("a rec x 3", "start 'x'"),
        ("a rec nan 3", "start 'nan'"),
        ("b other 1 2", "recordings that wav.scp does not have, first 'b' of 'other'"),
        ("ok rec 1 2", "'ok' occurs twice"),
    ],
)
def test_a_line_of_segments_that_means_nothing_is_named(tmp_path, line, message):
    (tmp_path / "wav.scp").write_text("rec r.wav\n")
    (tmp_path / "segments").write_text(f"ok rec 0 1\n{line}\n")
    with pytest.raises(RecipeError, match=message):
        read_wavs(tmp_path)


@pytest.mark.parametrize(
    ("suffix", "rate", "channels"),
    [(".wav", 16000, 1), (".flac", 16000, 1), (".wav", 16000, 2)],
)
def test_parts_are_the_samples_of_their_times(
    recording, tmp_path, suffix, rate, channels
):
    path, samples = recording(suffix, rate, channels)
    expected = np.asarray(samples).mean(1)
    # They overlap, and stand in no order.
    times = {"late": (12.5, 20.0), "early": (0.0, 2.5), "over": (2.0, 13.0)}
    wavs = {utt: part_of(str(path), *span) for utt, span in times.items()}
    for _ in range(2):  # the second time from what the first wrote
        found = prepare_audio(wavs, "data/train/wav.scp", tmp_path / "audio")
        assert list(found) == list(times)
        for utt, (start, end) in times.items():
            audio, _ = soundfile.read(found[utt].path)
            own = expected[round(start * rate) : round(end * rate)]
            assert np.abs(audio - own).max() < 2**-14
            assert found[utt].seconds == end - start and found[utt].cut


@pytest.mark.parametrize("suffix", [".mp3", ".opus", ".ogg"])
def test_parts_of_compressed_recordings_are_as_long_as_their_times(
    recording, tmp_path, suffix
):
    path, _ = recording(suffix, 48000 if suffix == ".opus" else 44100, 2)
    wavs = {"a": part_of(str(path), 1.0, 4.0), "b": part_of(str(path), 15.0, None)}
    found = prepare_audio(wavs, "data/train/wav.scp", tmp_path / "audio")
    assert found["a"].num_samples == 48000
    assert found["b"].seconds == pytest.approx(5, abs=0.1)
    seconds = header_seconds(wavs, "data/train/wav.scp")
    assert seconds == pytest.approx({"a": 3.0, "b": found["b"].seconds}, abs=0.1)


def test_a_part_outside_its_recording_is_named_and_the_others_stay(recording, tmp_path):
    path, _ = recording()
    spans = {f"ok{n}": (n, n + 3) for n in range(12)}
    spans |= {"after": (21.0, 24.0), "over": (17.0, 21.0), "nearly": (17.0, 20.4)}
    wavs = {utt: part_of(str(path), *span) for utt, span in spans.items()}
    for function in (header_seconds, prepare_audio):
        skipped = SkippedAudio(tmp_path / "skipped.tsv", 20.0)
        more = [tmp_path / "audio"] if function is prepare_audio else []
        found = function(wavs, "data/train/wav.scp", *more, skipped=skipped)
        assert found.keys() == spans.keys() - {"after", "over"}
        for why in skipped.reasons("train").values():
            assert "is outside: the recording has 20.00 s" in why


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_damage_anywhere_in_a_recording_leaves_none_of_its_parts(
    recording, tmp_path, suffix
):
    path, _ = recording(suffix)
    content = bytearray(path.read_bytes())
    # The end of a WAV file is cut, a sum of a FLAC file's samples is another.
    if suffix == ".wav":
        content = content[:-1000]
    else:
        content[30] ^= 1
    path.write_bytes(content)
    wavs = {"a": part_of(str(path), 1.0, 4.0), "b": part_of(str(path), 5.0, 9.0)}
    for _ in range(2):
        with pytest.raises(RecipeError, match="2 of 2 audio files cannot be used"):
            prepare_audio(wavs, "data/train/wav.scp", tmp_path / "audio")
        assert not list((tmp_path / "audio").glob("*.flac"))


def test_formatting_cuts_a_set_and_counts_what_it_cut(recording, tmp_path):
    path, _ = recording()
    spans = {"a": (0.0, 3.0), "b": (3.5, 4.5), "c": (5.0, 19.0)}
    rows = [
        Utterance(utt, str(path), "eng", text=utt, start=start, end=end)
        for utt, (start, end) in spans.items()
    ]
    write_set(tmp_path / "data/train_eng", rows)
    formatted = collect_set([tmp_path / "data/train_eng"], tmp_path / "dump", 2.0, 10.0)
    assert formatted.tables["utt2num_samples"] == {"a": "48000"}
    counts = formatted.report["eng"]
    assert counts["cut"] == counts["dropped_short"] == counts["dropped_long"] == 1


def test_a_manifest_s_start_and_end_reach_the_set(recording, tmp_path):
    path, _ = recording()
    lines = ["utt_id\tpath\tlang\tsplit\tstart\tend"]
    for n in range(3):
        split = ("train", "dev", "test")[n]
        lines.append(
            f"u{n}\t{path}\teng\t{split}\t{5 * n}\t{5 * n + 4 if n < 2 else ''}"
        )
    manifest = tmp_path / "manifest.tsv"
    manifest.write_text("\n".join(lines) + "\n")
    assert [
        (u.start, u.end)
        for u in READERS["tsv"](Source("tsv", str(manifest)), Reading())
    ] == [
        (0.0, 4.0),
        (5.0, 9.0),
        (10.0, None),
    ]
    stats = prepare_manifest(manifest, tmp_path / "data")
    assert stats["used"] == 3  # parts of one file are no copies of each other
    assert read_table(tmp_path / "data/dev_eng/segments") == {"u1": "radio_one 5.0 9.0"}
    manifest.write_text("\n".join(lines).replace("\t9", "\t4") + "\n")
    with pytest.raises(RecipeError, match=r"manifest.tsv:3: start '5', end '4'"):
        READERS["tsv"](Source("tsv", str(manifest)), Reading())
