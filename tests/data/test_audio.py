"""Audio files: what is refused, what is converted."""

import os

import numpy as np
import pytest
import soundfile
import soxr

from espnet2_lamer.data.audio import header_seconds
from espnet2_lamer.data.converting import prepare_audio
from espnet2_lamer.errors import RecipeError


def _prepare(path, tmp_path, utt="u"):
    return prepare_audio({utt: str(path)}, "data/x/wav.scp", tmp_path / "converted")[
        utt
    ]


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_16_khz_mono_files_are_used_as_they_are(suffix, tmp_path, audio_file):
    path = audio_file(tmp_path / f"a{suffix}", 1.5)
    audio = _prepare(path, tmp_path)
    assert audio.path == str(path)
    assert audio.num_samples == 24000
    assert not (audio.resampled or audio.downmixed or audio.decoded)
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize(
    "suffix, rate, channels, change",
    [
        (".wav", 8000, 1, "resampled"),
        (".flac", 44100, 1, "resampled"),
        (".wav", 16000, 2, "downmixed"),
        (".ogg", 16000, 1, "decoded"),
        (".opus", 16000, 1, "decoded"),
        (".mp3", 16000, 1, "decoded"),
    ],
)
def test_others_become_16_khz_mono_flac_and_are_counted(
    suffix, rate, channels, change, tmp_path, audio_file
):
    path = audio_file(tmp_path / f"a{suffix}", 2.0, rate, channels)
    audio = _prepare(path, tmp_path)
    changes = {n for n in ("resampled", "downmixed", "decoded") if getattr(audio, n)}
    assert changes == {change}
    info = soundfile.info(audio.path)
    assert (info.samplerate, info.channels, info.format) == (16000, 1, "FLAC")
    assert info.frames == audio.num_samples == pytest.approx(32000, abs=1)


def test_resampling_keeps_a_tone_and_downmixing_averages(tmp_path):
    time = np.arange(16000) / 8000
    tone = 0.5 * np.sin(2 * np.pi * 1000 * time)
    soundfile.write(tmp_path / "a.wav", np.stack([tone, 0 * tone], 1), 8000)
    audio = _prepare(tmp_path / "a.wav", tmp_path)
    found = soundfile.read(audio.path)[0][1000:-1000]
    expected = 0.25 * np.sin(2 * np.pi * 1000 * np.arange(32000) / 16000)[1000:-1000]
    assert np.abs(found - expected).max() < 2e-3


def test_conversion_does_not_clip(tmp_path):
    square = np.sign(np.sin(np.arange(8000) * 0.7)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", square, 8000, subtype="FLOAT")
    found = soundfile.read(_prepare(tmp_path / "a.wav", tmp_path).path)[0]
    overshooting = soxr.resample(square, 8000, 16000)
    assert np.abs(overshooting).max() > 1.0
    expected = overshooting * (0.999 / np.abs(overshooting).max())
    assert np.abs(found - expected).max() < 1e-4


def _cut(path, fraction):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


@pytest.mark.parametrize("fraction", [0.5, 0.97])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".mp3"])
def test_truncated_audio_is_refused(suffix, fraction, tmp_path, audio_file):
    path = _cut(audio_file(tmp_path / f"a{suffix}", 3.0), fraction)
    with pytest.raises(RecipeError, match=r"data/x/wav\.scp: 1 of 1.*(?s:.*)truncated"):
        _prepare(path, tmp_path)
    assert not list(tmp_path.glob("converted/*"))


def test_streamed_wav_of_unknown_length_is_not_called_truncated(tmp_path, audio_file):
    path = audio_file(tmp_path / "a.wav", 2.0)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert _prepare(path, tmp_path).num_samples == 32000


def test_wav_with_other_chunks_before_its_samples_is_read(tmp_path, audio_file):
    path = audio_file(tmp_path / "a.wav", 1.0)
    data = path.read_bytes()
    at = data.index(b"data")
    path.write_bytes(data[:at] + b"junk\x03\x00\x00\x00abc\x00" + data[at:])
    assert _prepare(path, tmp_path).num_samples == 16000


def test_missing_empty_silent_and_broken_files_are_told_apart(tmp_path, audio_file):
    (tmp_path / "empty.wav").touch()
    audio_file(tmp_path / "zero.wav", 0.0)
    (tmp_path / "text.wav").write_text("no audio at all")
    samples = np.zeros(16000, np.float32)
    samples[7] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16000, subtype="FLOAT")
    wavs = {
        name: str(tmp_path / f"{name}.wav")
        for name in ("missing", "empty", "zero", "text", "nan")
    }
    wavs["pipe"] = "sox a.wav -t wav - |"
    with pytest.raises(RecipeError) as caught:
        prepare_audio(wavs, "data/x/wav.scp", tmp_path / "converted")
    message = str(caught.value)
    assert message.startswith("data/x/wav.scp: 6 of 6 audio files cannot be used")
    for name, reason in [
        ("missing", "file not found"),
        ("empty", "empty file (0 bytes)"),
        ("zero", "no samples (zero length)"),
        ("text", "not readable as audio"),
        ("nan", "holds NaN"),
        ("pipe", "is a command"),
    ]:
        line = next(x for x in message.splitlines() if x.startswith(f"  {name} "))
        assert wavs[name] in line and reason in line


def test_ten_bad_files_are_named_and_all_counted(tmp_path, audio_file):
    wavs = {f"u{n:02d}": str(tmp_path / f"{n}.wav") for n in range(40)}
    wavs["v"] = str(audio_file(tmp_path / "good.wav"))
    for function, args in ((prepare_audio, (tmp_path,)), (header_seconds, ())):
        with pytest.raises(RecipeError) as caught:
            function(wavs, "wav.scp", *args)
        assert "40 of 41" in str(caught.value)
        assert str(caught.value).count("file not found") == 10
        assert "... and 30 more" in str(caught.value)


def test_a_converted_file_is_reused_until_its_original_changes(tmp_path, audio_file):
    path = audio_file(tmp_path / "a.wav", 2.0, 8000)
    converted = _prepare(path, tmp_path).path
    first = os.stat(converted).st_ino
    assert _prepare(path, tmp_path).num_samples == 32000
    assert os.stat(converted).st_ino == first
    audio_file(path, 3.0, 8000)
    assert _prepare(path, tmp_path).num_samples == 48000
    # Another original under the same id is noticed even with the same time.
    other = audio_file(tmp_path / "b.wav", 1.0, 8000)
    time = os.stat(path).st_mtime_ns
    os.utime(other, ns=(time, time))
    assert _prepare(other, tmp_path).num_samples == 16000


def test_processes_do_not_change_the_result(tmp_path, audio_file):
    wavs = {
        f"u{n:02d}": str(audio_file(tmp_path / f"{n}.wav", 0.5, 8000, seed=n))
        for n in range(20)
    }
    results = [prepare_audio(wavs, "wav.scp", tmp_path / str(nj), nj) for nj in (1, 2)]
    assert list(results[0]) == list(results[1]) == list(wavs)
    for utt in wavs:
        with open(results[0][utt].path, "rb") as one:
            with open(results[1][utt].path, "rb") as two:
                assert one.read() == two.read()


def test_header_durations_are_in_seconds(tmp_path, audio_file):
    wavs = {"u": str(audio_file(tmp_path / "a.wav", 2.5, 8000, 2))}
    assert header_seconds(wavs, "wav.scp") == {"u": 2.5}
