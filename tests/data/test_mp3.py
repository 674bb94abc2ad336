"""MP3 frames: what is counted, what is seen as damage, what is put before."""

import struct

import numpy as np
import pytest
import soundfile

from espnet2_lamer.data.mp3 import scan, with_length


def _mp3(tmp_path, rate=16000, mode="CONSTANT", level=0.5, channels=1, seconds=3.0):
    time = np.arange(round(rate * seconds)) / rate
    noise = np.random.default_rng(0).standard_normal((time.size, channels))
    # Loud and nearly silent by turns, so that varying bit rates vary.
    samples = noise * np.where(np.sin(4 * time) > 0, 0.2, 1e-4)[:, None]
    path = tmp_path / f"{rate}_{mode}_{level}_{channels}.mp3"
    options = {"bitrate_mode": mode, "compression_level": level}
    soundfile.write(path, samples.astype(np.float32), rate, format="MP3", **options)
    return path.read_bytes()


def _without_header(data):
    return data[scan(data).start :]


def _decoded(data, tmp_path):
    path = tmp_path / "decoded.mp3"
    path.write_bytes(data)
    return soundfile.read(path, dtype="float32", always_2d=True)[0]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 32000, 44100, 48000])
def test_frames_of_whole_streams_are_those_the_encoder_stated(
    rate, mode, channels, tmp_path
):
    stream = scan(_mp3(tmp_path, rate, mode, channels=channels))
    assert stream.problem == ""
    assert stream.frames == stream.stated
    assert stream.varying == (mode == "VARIABLE")
    # Layer III: 1152 samples a frame in MPEG-1, 576 below 32 kHz.
    per_frame = 1152 if rate >= 32000 else 576
    assert stream.samples == stream.frames * per_frame
    assert 0 <= stream.samples - 3 * rate < 4 * per_frame


def test_frames_are_counted_without_a_header_and_between_tags(tmp_path):
    data = _mp3(tmp_path)
    frames = scan(data).frames
    bare = _without_header(data)
    before = b"ID3\x04\x00\x00" + bytes([0, 0, 1, 72]) + bytes(200)
    for variant in (bare, before + bare, bare + b"TAG" + bytes(125), b"\0\0" + bare):
        stream = scan(variant)
        assert (stream.frames, stream.stated, stream.problem) == (frames, None, "")


def test_a_stream_of_varying_bit_rate_is_read_whole_once_it_has_a_header(tmp_path):
    data = _mp3(tmp_path, 48000, "VARIABLE")
    bare = _without_header(data)
    stream = scan(bare)
    # What libsndfile makes of it without one: the first frame's bit rate misleads it.
    assert len(_decoded(bare, tmp_path)) != stream.samples
    found = _decoded(with_length(bare, stream), tmp_path)
    # Without its delay of 529 samples the decoder gives all frames.
    assert len(found) == stream.samples - 529
    # The encoder's own header leaves out the encoder's delay of 576, too.
    expected = _decoded(data, tmp_path)
    assert np.array_equal(found[576 : 576 + len(expected)], expected)


@pytest.mark.parametrize("level", [0.2, 0.5, 0.99])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_the_header_has_room_at_every_bit_rate(rate, level, tmp_path):
    data = _mp3(tmp_path, rate, level=level)
    bare = _without_header(data)
    stream = scan(bare)
    again = scan(with_length(bare, stream))
    assert (again.stated, again.frames) == (stream.frames, stream.frames)


def test_a_header_that_promises_other_frames_than_there_are_is_seen(tmp_path):
    data = _mp3(tmp_path)
    stated = scan(data).stated
    at = data.index(b"Info") + 8
    for promise, word in ((2 * stated, "truncated"), (stated // 2, "lies")):
        lying = data[:at] + struct.pack(">I", promise) + data[at + 4 :]
        problem = scan(lying).problem
        assert word in problem and f"promises {promise} MPEG frames" in problem
        assert f"{stated} there" in problem
    for promise in (stated - 1, stated + 1, 0):
        near = data[:at] + struct.pack(">I", promise) + data[at + 4 :]
        assert scan(near).problem == ""


def test_cut_streams_are_seen_with_a_header_and_in_the_middle_of_a_frame(tmp_path):
    data = _mp3(tmp_path)
    bare = _without_header(data)
    assert "truncated" in scan(data[: len(data) // 2]).problem
    assert "truncated" in scan(data[:-10]).problem
    assert "last MPEG frame is cut" in scan(bare[:-10]).problem
    # Frames of 16 kHz at constant bit rate have one size.
    size = len(bare) // scan(bare).frames
    assert "last MPEG frame is cut" in scan(bare[: 20 * size + 30]).problem
    # The documented limit: nothing says that more should follow.
    assert scan(bare[: 20 * size]).problem == ""
    assert scan(bare[: 20 * size]).frames == 20


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("filling", [b"\x00", b"\x55"])
def test_holes_and_lost_ends_are_seen(header, filling, tmp_path):
    data = _mp3(tmp_path)
    if not header:
        data = _without_header(data)
    middle = len(data) // 2
    hole = data[:middle] + filling * 2000 + data[middle + 2000 :]
    assert "damaged" in scan(hole).problem
    lost = data[:middle] + filling * (len(data) - middle)
    assert "damaged" in scan(lost).problem


def test_a_stream_that_lost_its_start_is_seen(tmp_path):
    data = _mp3(tmp_path)
    for lost in (data[100:], _without_header(data)[100:], b"\x55" * 50 + data):
        assert scan(lost).problem == "damaged: no MPEG frame at the start"


def test_padding_and_other_layers_are_no_damage(tmp_path):
    data = _mp3(tmp_path)
    assert scan(data + bytes(1000)).problem == ""
    assert scan(_without_header(data) + bytes(1000)).problem == ""
    # Layer II.
    assert scan(b"\xff\xfd\x90\x00" + bytes(1000)) is None
