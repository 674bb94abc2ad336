"""What is speech and what is done to it: one rule for the recipe and bin.extract."""

import numpy as np
import pytest
import soundfile

from espnet2_lamer.data import converting, usable
from espnet2_lamer.data.audio_decoding import Unusable
from espnet2_lamer.data.audio_files import EXTENSIONS, is_companion, is_hidden
from espnet2_lamer.data.converting import prepare_audio
from espnet2_lamer.data.formatting import collect_set
from espnet2_lamer.data.speech import read_speech
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.export.features import read_waveform


def _speech(seconds=2.0, rate=16000, seed=0):
    """Noise whose level changes as that of speech does."""
    count = round(seconds * rate)
    level = 0.02 + np.sin(np.linspace(0, 9, count)) ** 2
    return 0.1 * level * np.random.default_rng(seed).standard_normal(count)


def _prepare(path, tmp_path, **options):
    wavs = {"u": str(path)}
    return prepare_audio(wavs, "d/wav.scp", tmp_path / "converted", **options)["u"]


def _without_length(path, samples):
    """Write a FLAC file as a program does that writes to a pipe."""
    soundfile.write(path, samples, 16000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:42] = bytes(20)
    path.write_bytes(data)
    assert soundfile.info(path).frames > 1 << 60
    return path


def _reason(path, tmp_path):
    """Why the recipe refuses a file; bin.extract and labelling must say the same."""
    with pytest.raises(RecipeError) as caught:
        _prepare(path, tmp_path)
    reason = str(caught.value).splitlines()[1].partition(f"{path}: ")[2]
    with pytest.raises(Unusable) as caught:
        read_waveform(str(path))
    assert str(caught.value) == reason
    with pytest.raises(RecipeError) as caught:
        read_speech("u", str(path))
    assert reason in str(caught.value)
    return reason


@pytest.mark.parametrize("scale", [2.0**15, 2.0**23, 2.0**31])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("gain", [0.01, 1.0])
def test_floats_of_an_integer_s_size_are_scaled_and_counted(
    scale, subtype, gain, tmp_path
):
    samples = gain * _speech()
    soundfile.write(tmp_path / "a.wav", samples * scale, 16000, subtype=subtype)
    for _ in range(2):  # the second time it is known from the converted file
        found = _prepare(tmp_path / "a.wav", tmp_path)
        assert found.rescaled and not found.decoded
    heard = soundfile.read(found.path)[0]
    assert np.corrcoef(heard, samples)[0, 1] > 0.9
    assert np.abs(heard).max() < 1
    if gain == 1:
        assert np.abs(heard - samples).max() < 1e-4
        assert np.abs(read_waveform(str(tmp_path / "a.wav")) - samples).max() < 1e-4


@pytest.mark.parametrize("wild", [1e30, 3e38, -1e12, 5e4, 1e3])
def test_absurd_samples_are_refused_by_name(wild, tmp_path):
    samples = _speech().astype(np.float32)
    samples[[70, 900]] = wild
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    assert f"the largest is {abs(wild):.3g}" in _reason(tmp_path / "a.wav", tmp_path)
    everywhere = np.full(9000, 1e30) * _speech()[:9000]
    soundfile.write(tmp_path / "b.wav", everywhere, 16000, subtype="FLOAT")
    assert "absurd samples" in _reason(tmp_path / "b.wav", tmp_path)


@pytest.mark.parametrize("peak", [0.3, 1.0, 1.4, 8.0])
def test_hot_floats_are_used_as_they_are(peak, tmp_path):
    samples = _speech()
    samples *= peak / np.abs(samples).max()
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    assert _prepare(tmp_path / "a.wav", tmp_path).path == str(tmp_path / "a.wav")
    assert np.allclose(read_waveform(str(tmp_path / "a.wav")), samples, atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("noise", [0.0, 0.003, 0.02])
def test_channels_in_opposite_phase_leave_speech_and_not_noise(rate, noise, tmp_path):
    one = _speech(2.0, rate)
    own = noise * np.random.default_rng(5).standard_normal((2, len(one)))
    both = np.stack([one + own[0], own[1] - 0.9 * one], axis=1)
    soundfile.write(tmp_path / "a.wav", both, rate, subtype="PCM_24")
    for _ in range(2):
        found = _prepare(tmp_path / "a.wav", tmp_path)
        assert found.one_channel and found.downmixed
    soundfile.write(tmp_path / "b.wav", both[:, :1], rate, subtype="PCM_24")
    expected = read_waveform(str(tmp_path / "b.wav"))
    assert np.abs(soundfile.read(found.path)[0] - expected).max() < 1e-3
    assert np.abs(read_waveform(str(tmp_path / "a.wav")) - expected).max() < 1e-6


@pytest.mark.parametrize("kind", ["same", "independent", "one silent", "six, one on"])
def test_channels_that_do_not_cancel_are_averaged(kind, tmp_path):
    one, other = _speech(), _speech(seed=1)
    both = {
        "same": [one, one],
        "independent": [one, other],
        "one silent": [one, 0 * one],
        "six, one on": [0 * one, one, *[0 * one] * 4],
    }[kind]
    soundfile.write(tmp_path / "a.wav", np.stack(both, axis=1), 16000)
    found = _prepare(tmp_path / "a.wav", tmp_path)
    assert found.downmixed and not found.one_channel
    assert np.abs(soundfile.read(found.path)[0] - np.mean(both, axis=0)).max() < 1e-4


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("value", [0.0, 0.25])
@pytest.mark.parametrize("channels", [1, 2])
def test_silence_is_refused_at_every_rate(rate, value, channels, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full((rate, channels), value), rate)
    assert _reason(tmp_path / "a.wav", tmp_path).startswith("silent")


def test_a_truncated_file_is_refused_by_all(tmp_path, audio_file):
    path = audio_file(tmp_path / "a.wav", 1.0)
    path.write_bytes(path.read_bytes()[:-16000])
    assert "truncated: header promises 32000 bytes" in _reason(path, tmp_path)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
@pytest.mark.parametrize(
    "kind", ["AIFF", "AU", "NIST", "W64", "RF64", "VOC", "CAF", "WAV"]
)
def test_a_truncated_file_of_any_format_is_refused(kind, fraction, tmp_path):
    path = tmp_path / "a.x"
    soundfile.write(path, _speech(), 16000, format=kind)
    data = path.read_bytes()
    assert _prepare(path, tmp_path).num_samples == 32000
    path.write_bytes(data[: int(len(data) * fraction)])
    reason = _reason(path, tmp_path)
    assert reason.startswith("truncated: ") or (kind == "CAF" and "malformed" in reason)


def test_flac_of_unknown_length_is_counted_and_converted(tmp_path):
    path = _without_length(tmp_path / "a.flac", samples := _speech())
    found = _prepare(path, tmp_path, limits=(1.0, 3.0))
    assert found.decoded and (found.num_samples, found.seconds) == (32000, 2.0)
    # What training reads says its length.
    assert soundfile.info(found.path).frames == 32000
    assert np.abs(soundfile.read(found.path)[0] - samples).max() < 1e-4
    assert _prepare(path, tmp_path, limits=(0.5, 1.0)).num_samples == 0


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3"])
def test_what_is_too_long_by_its_header_is_not_decoded(
    suffix, tmp_path, monkeypatch, audio_file
):
    path = audio_file(tmp_path / f"a{suffix}", 40.0, 44100)
    short = audio_file(tmp_path / f"b{suffix}", 3.0, 44100)
    decoded = []
    decode = usable.decode
    monkeypatch.setattr(
        usable, "decode", lambda source, *a: decoded.append(1) or decode(source, *a)
    )
    asked = []
    monkeypatch.setattr(
        converting, "check_space", lambda _, needed, *more: asked.append(needed)
    )
    found = _prepare(path, tmp_path, limits=(2.0, 30.0))
    assert 40 <= found.seconds < 40.1 and not decoded and asked == [0]
    assert not (tmp_path / "converted").exists()
    _prepare(short, tmp_path, limits=(2.0, 30.0))
    assert decoded == [1] and asked[1] > 0


def test_clips_without_one_frame_are_left_out_by_name(make_set, tmp_path, caplog):
    from espnet2_lamer.data.audio import SkippedAudio

    folder = make_set("train", "eng", [0.0249375, 0.025, 0.1, 2.0], suffix=".wav")
    skipped = SkippedAudio(tmp_path / "skipped.tsv")
    formatted = collect_set([folder], tmp_path / "audio", 0.01, 30, skipped=skipped)
    samples = formatted.tables["utt2num_samples"]
    assert list(samples.values()) == ["400", "1600", "32000"]
    assert formatted.report["eng"]["dropped_short"] == 1
    skipped.write()
    assert "eng_train_000" in (tmp_path / "skipped.tsv").read_text()
    assert "shorter than one frame (400 samples at 16 kHz): 399" in (
        (tmp_path / "skipped.tsv").read_text()
    )
    # A rule, not a damage: no share of them stops the run.
    assert not skipped.counts and "first eng_train_000" in caplog.text


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs"),
        (b"/annex/objects/SHA256E-s9--0.wav\n", "git-annex"),
        (b"\n<!DOCTYPE html><html>404</html>", "an HTML page"),
        (b"<HTML><head>", "an HTML page"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(99), "copied from a Mac"),
        (bytes(4096), "only zero bytes"),
        (b"../data/A11_0.{}", "the path ../data/A11_0.{}: a symbolic link"),
        ("你好，世界\n".encode() * 400, "text that begins '你好，世界'"),
        (b'{"error": "not found"}', "text that begins"),
        (b"PK\3\4" + bytes(90), "a zip archive"),
        (b"\0\0\0\x20ftypM4A " + bytes(90), "MP4"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81\1" + bytes(90), "WebM"),
        (b"NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00", "SPHERE"),
    ],
)
@pytest.mark.parametrize("suffix", ["wav", "mp3", "flac"])
def test_what_is_no_audio_is_called_what_it_is(content, reason, suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content.replace(b"{}", suffix.encode()))
    assert reason.replace("{}", suffix) in _reason(path, tmp_path)


def test_every_suffix_of_the_list_is_read(tmp_path):
    formats = {
        **{
            ".wave": "WAV",
            ".bwf": "WAV",
            ".rf64": "RF64",
            ".oga": "OGG",
            ".aif": "AIFF",
        },
        **{".aifc": "AIFF", ".snd": "AU", ".sph": "NIST", ".nist": "NIST"},
    }
    for suffix in EXTENSIONS:
        path = tmp_path / f"a{suffix}"
        options = {"format": formats.get(suffix, suffix[1:].upper())}
        if suffix == ".opus":
            options = {"format": "OGG", "subtype": "OPUS"}
        soundfile.write(path, _speech(), 16000, **options)
        assert abs(len(read_waveform(str(path))) - 32000) < 1200, suffix


def test_hidden_files_are_told_by_their_names():
    assert is_hidden("a/.DS_Store") and is_hidden("__MACOSX/a/b.wav")
    assert is_hidden(".Trash/b.wav") and not is_hidden("a/b._c.wav")
    assert is_companion("/x/._a.wav") and is_companion("/x/__MACOSX/a.wav")
    assert not is_companion("/x/.hidden/a.wav")
