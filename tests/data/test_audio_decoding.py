"""Damaged audio files: every kind is seen, and told from files that are only odd."""

import struct

import numpy as np
import pytest
import soundfile

from espnet2_lamer.data.audio_decoding import Unusable, decode, duration, open_audio

_FORMATS = [".wav", ".flac", ".ogg", ".opus", ".mp3"]


def _read(path, **options):
    with open_audio(str(path)) as source:
        return decode(source, **options)


def _seconds(path):
    with open_audio(str(path)) as source:
        return duration(source)


def _reason(path):
    with pytest.raises(Unusable) as caught:
        _read(path)
    return str(caught.value)


@pytest.mark.parametrize("suffix", _FORMATS)
def test_whole_files_are_read_whole(suffix, tmp_path, audio_file):
    path = audio_file(tmp_path / f"a{suffix}", 3.0, 16000, 2)
    assert _read(path).shape == (48000, 2)
    assert _seconds(path) == 3.0


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("suffix", _FORMATS)
def test_cut_files_are_refused(suffix, fraction, tmp_path, audio_file):
    path = audio_file(tmp_path / f"a{suffix}", 3.0)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    # A fifth of an Opus file is less than its first page.
    assert "truncated" in _reason(path) or (suffix, fraction) == (".opus", 0.2)


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".opus", ".mp3"])
def test_a_hole_of_zeros_is_refused(suffix, tmp_path, audio_file):
    path = audio_file(tmp_path / f"a{suffix}", 9.0)
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes(3000) + data[middle + 3000 :])
    assert "damaged" in _reason(path) or "truncated" in _reason(path)


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".opus"])
def test_one_flipped_bit_is_refused_where_the_format_has_checksums(
    suffix, tmp_path, audio_file
):
    path = audio_file(tmp_path / f"a{suffix}", 3.0)
    data = bytearray(path.read_bytes())
    for at in (len(data) // 2, len(data) - 40):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        assert _reason(path)


def _wav_size(path, size):
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", size)
    path.write_bytes(data)


@pytest.mark.parametrize("size, word", [(96000, "truncated"), (24000, "lies")])
def test_a_wav_header_that_lies_about_the_length_is_refused(
    size, word, tmp_path, audio_file
):
    path = audio_file(tmp_path / "a.wav", 1.5)
    _wav_size(path, size)
    assert word in _reason(path) and f"{size} bytes" in _reason(path)


def test_chunks_after_the_samples_of_a_wav_are_no_lie(tmp_path, audio_file):
    path = audio_file(tmp_path / "a.wav", 1.5)
    path.write_bytes(path.read_bytes() + b"id3 \x08\x00\x00\x00" + bytes(8))
    assert len(_read(path)) == 24000


def _flac_total(path, total):
    # STREAMINFO: the 36 bits before the MD5 count the samples (RFC 9639, 8.2).
    data = bytearray(path.read_bytes())
    value = int.from_bytes(data[18:26], "big") >> 36 << 36 | total
    data[18:26] = value.to_bytes(8, "big")
    path.write_bytes(data)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("total", [24000, 96000])
def test_a_flac_header_that_lies_about_the_length_is_refused(
    total, subtype, tmp_path, audio_file
):
    path = audio_file(tmp_path / "a.flac", 3.0, channels=2, subtype=subtype)
    assert len(_read(path)) == 48000
    _flac_total(path, total)
    assert "lies" in _reason(path) or "truncated" in _reason(path)


def test_a_flac_stream_of_unknown_length_is_read_whole(tmp_path, audio_file):
    path = audio_file(tmp_path / "a.flac", 3.0)
    expected = soundfile.read(path, dtype="float32", always_2d=True)[0]
    _flac_total(path, 0)
    assert np.array_equal(_read(path), expected)
    assert _seconds(path) == 3.0


def test_an_ogg_header_that_lies_about_the_length_is_refused(tmp_path, audio_file):
    path = audio_file(tmp_path / "a.ogg", 3.0)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"OggS") + 6
    for granule in (24000, 96000):
        data[at : at + 8] = struct.pack("<q", granule)
        path.write_bytes(data)
        assert "checksum" in _reason(path)


@pytest.mark.parametrize("suffix", [".ogg", ".opus"])
def test_a_missing_ogg_page_is_refused(suffix, tmp_path, audio_file):
    path = audio_file(tmp_path / f"a{suffix}", 9.0)
    pages = path.read_bytes().split(b"OggS")
    # The first piece is empty; two or three pages of headers come before the audio.
    path.write_bytes(b"OggS".join(pages[:5] + pages[6:]))
    assert "pages are missing" in _reason(path)


def test_an_mp3_header_at_odds_with_its_frames_is_refused(tmp_path, audio_file):
    path = audio_file(tmp_path / "a.mp3", 3.0)
    data = bytearray(path.read_bytes())
    # Side information of a header frame is empty; else libmpg123 takes it for audio
    # and the length from its bit rate.
    data[data.index(b"Xing") - 2] = 1
    path.write_bytes(data)
    assert soundfile.info(path).frames < 40000
    assert "lies about the length" in _reason(path)


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("tag", [0, 300])
def test_an_mp3_without_length_header_is_read_whole(mode, tag, tmp_path, audio_file):
    # As programs write it that cannot go back, such as ffmpeg into a pipe.
    path = audio_file(tmp_path / "a.mp3", 3.0, 48000, bitrate_mode=mode)
    whole = path.read_bytes()
    first = whole.index(b"\xff\xfb", 4)
    id3 = b"ID3\x04\x00\x00" + bytes([0, 0, tag >> 7, tag & 127]) + bytes(tag)
    path.write_bytes((id3 if tag else b"") + whole[first:])
    # 3 s, the encoder's delay, and filled up to frames of 1152 samples.
    frames = round(_seconds(path) * 48000 / 1152)
    assert _seconds(path) == frames * 1152 / 48000
    assert 0 <= _seconds(path) - 3.0 < 4 * 1152 / 48000
    assert len(_read(path)) >= 3 * 48000


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinite_samples_are_refused(value, tmp_path):
    samples = np.full(16000, 0.1, np.float32)
    samples[7] = value
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    assert _reason(tmp_path / "a.wav") == "holds NaN or infinite samples"


def test_unreadable_files_are_refused_with_the_reason(tmp_path, audio_file):
    (tmp_path / "empty.mp3").touch()
    (tmp_path / "text.flac").write_text("no audio at all")
    (tmp_path / "folder.wav").mkdir()
    audio_file(tmp_path / "zero.wav", 0.0)
    for name, reason in [
        ("missing.wav", "file not found"),
        ("empty.mp3", "empty file (0 bytes)"),
        ("text.flac", "not readable as audio"),
        ("folder.wav", "not readable as audio"),
        ("zero.wav", "no samples (zero length)"),
        ("sox a.wav - |", "is a command"),
    ]:
        assert reason in _reason(tmp_path / name), name


def test_random_damage_never_raises_anything_else(tmp_path, audio_file):
    generator = np.random.default_rng(0)
    for suffix in _FORMATS:
        path = audio_file(tmp_path / f"a{suffix}", 1.0)
        data = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            damaged = data.copy()
            # Half of the damage in the header.
            end = len(data) if generator.random() < 0.5 else 128
            at = generator.integers(0, end, 4)
            damaged[at] = generator.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            try:
                samples = _read(path)
            except Unusable:
                continue
            assert np.isfinite(samples).all() and len(samples)
