"""Where recordings are cut, and what becomes of the rest."""

import numpy as np
import pytest
import soundfile
import soxr

from benchmarks.joined_speech import inside, join, near
from espnet2_lamer.data import voice_activity
from espnet2_lamer.data.converting import write_flac
from espnet2_lamer.data.segmentation import (
    Segment,
    cut_at_pauses,
    find_cuts,
    find_segments,
    segment_id,
)
from espnet2_lamer.data.voice_activity import FRAME, FRAME_SECONDS, Activity, listen
from espnet2_lamer.errors import RecipeError

RATE = 16000


def activity(speech, seconds, quiet=()):
    """Speech in these spans, silence elsewhere, and quieter speech in some places."""
    time = (np.arange(int(np.ceil(seconds / FRAME_SECONDS))) + 0.5) * FRAME_SECONDS
    heard = np.zeros(len(time), np.float32)
    level = np.full(len(time), -80, np.float32)
    for start, end in speech:
        heard[(time >= start) & (time < end)] = 0.9
        level[(time >= start) & (time < end)] = -20
    for place in quiet:
        level[np.abs(time - place) < 0.15] = -40
    return Activity(heard, level, seconds)


def spans(cuts):
    return [(s.start, s.end) for s in cuts.segments]


@pytest.mark.parametrize(
    ("speech", "expected"),
    [
        # Pauses below 1.5 s stay, longer ones go; 0.1 s is left around speech.
        ([(1, 5), (6, 9), (11, 14)], [(0.9, 9.1), (10.9, 14.1)]),
        # Too long: cut at the longest pause, wherever it is.
        ([(0, 12), (12.4, 20), (21, 39)], [(0, 20.1), (20.9, 39.1)]),
        # Speech of a second joins what is near, and is lost where nothing is.
        ([(1, 6), (8, 9), (20, 21), (30, 35)], [(0.9, 9.1), (29.9, 35.1)]),
        # Half of a short pause on each side.
        ([(0, 20), (20.2, 35)], [(0, 20.1), (20.1, 35.1)]),
        ([], []),
        ([(0, 40)], [(0, 25.0), (25.0, 40)]),
    ],
)
def test_cuts_are_at_the_longest_pauses(speech, expected):
    found = spans(cut_at_pauses(activity(speech, 40.0, [25.0]), 2.0, 30.0))
    assert np.allclose(found, expected, atol=0.07) if expected else found == []


def test_speech_without_a_pause_is_cut_where_it_is_quietest_and_counted():
    cuts = cut_at_pauses(activity([(0, 70)], 70.0, [21.0, 45.0]), 2.0, 30.0)
    assert cuts.forced == 2
    ends = [end for _, end in spans(cuts)]
    assert ends == pytest.approx([21, 45, 70], abs=0.25)
    cuts = cut_at_pauses(activity([(0, 20), (21, 40)], 40.0), 2.0, 30.0)
    assert cuts.forced == 0


@pytest.mark.parametrize("seed", range(12))
def test_every_second_is_in_one_place_and_every_segment_of_usable_length(seed):
    generator = np.random.default_rng(seed)
    speech, position = [], 0.0
    for _ in range(80):
        start = position + generator.exponential(0.7) + 0.07
        position = start + generator.exponential(6.0) + 0.3
        speech.append((start, position))
    least, most = ((2.0, 30.0), (0.5, 4.0), (0.0, 10.0), (1.0, 2.0))[seed % 4]
    cuts = cut_at_pauses(activity(speech, position + 0.31), least, most)
    found = np.array(spans(cuts))
    lengths = found[:, 1] - found[:, 0]
    assert lengths.min() >= least and lengths.max() <= most + 1e-9
    assert (found[1:, 0] >= found[:-1, 1]).all()
    assert found[0, 0] >= 0 and found[-1, 1] <= position + 0.31
    rest = cuts.silence + cuts.music_or_noise + cuts.too_short
    assert cuts.speech + rest == pytest.approx(cuts.seconds, abs=0.05)
    # Hundredths: ids and tables have the same times.
    assert np.allclose(found * 100, np.round(found * 100))
    # Nearly all speech is in a segment or counted as too short.
    inside = sum(end - start for start, end in speech)
    assert cuts.speech + cuts.too_short > 0.97 * inside


def test_loud_sound_that_is_no_speech_is_music_or_noise_not_silence():
    heard = activity([(0, 10)], 40.0)
    heard.level[round(20 / FRAME_SECONDS) :] = -25
    cuts = cut_at_pauses(heard, 2.0, 30.0)
    assert cuts.music_or_noise == pytest.approx(20, abs=0.1)
    assert cuts.silence == pytest.approx(10, abs=0.2)


def test_ids_sort_as_the_times_do():
    segments = [Segment(9.5, 12.0), Segment(12.0, 99.99), Segment(3600.0, 3601.0)]
    ids = [segment_id("a", segment) for segment in segments]
    assert ids == sorted(ids) and ids[0] == "a-0000950-0001200"


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """Made-up speech of two languages, each utterance float32 at 16 kHz."""
    from espnet2_lamer.data.mini import build_mini
    from espnet2_lamer.fileio.datadir import read_table

    root = tmp_path_factory.mktemp("mini")
    build_mini(root, nj=1, seed=0, minutes_scale=0.05, langs=["eng"])
    wavs = [p for t in sorted(root.glob("*/wav.scp")) for p in read_table(t).values()]
    return [soundfile.read(path, dtype="float32")[0] for path in wavs[:16]]


@pytest.mark.parametrize(("snr", "at_edges"), [(None, 0.8), (10.0, 0.6)])
def test_nine_of_ten_cuts_are_in_pauses_of_made_up_speech(made_up, snr, at_edges):
    joined = join(made_up[:12], 1, snr=snr)
    cuts = find_cuts(joined.samples)
    times = [x for segment in cuts.segments for x in (segment.start, segment.end)]
    assert len(times) > 10
    assert inside(times, joined.pauses) >= 0.9
    assert near(times, [x for span in joined.speech for x in span]) >= at_edges


def test_a_file_is_cut_where_its_samples_are(made_up, tmp_path):
    joined = join(made_up[:4], 2, snr=30.0)
    expected = find_segments(joined.samples)
    stereo = np.stack([soxr.resample(joined.samples, RATE, 44100)] * 2, 1)
    for suffix, samples, rate in (
        (".flac", joined.samples, RATE),
        (".mp3", stereo, 44100),
        (".wav", stereo, 44100),
    ):
        path = tmp_path / f"a{suffix}"
        soundfile.write(path, samples, rate)
        found = find_segments(path)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert one.start == pytest.approx(other.start, abs=0.1)
            assert one.end == pytest.approx(other.end, abs=0.1)


def test_stripes_side_by_side_hear_what_one_frame_after_the_other_does(
    made_up, monkeypatch
):
    import torch

    samples = join(made_up[:3], 3, snr=20.0).samples
    samples = samples[: len(samples) // FRAME * FRAME]
    network = voice_activity._network()
    network.reset_states()
    with torch.inference_mode():
        expected = np.array(
            [
                network(torch.from_numpy(frame.copy())[None], RATE).item()
                for frame in samples.reshape(-1, FRAME)
            ]
        )
    # Several blocks, too, and pieces of odd lengths.
    monkeypatch.setattr(voice_activity, "_BLOCK", 300 * FRAME)
    heard = listen(np.array_split(samples, 7))
    assert heard.seconds == len(samples) / RATE
    assert len(heard.speech) == len(expected) == len(heard.level)
    differ = (heard.speech > 0.5) != (expected > 0.5)
    assert differ.mean() < 0.02
    assert np.abs(heard.speech - expected).mean() < 0.02


def test_torch_keeps_its_threads(made_up):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        voice_activity._network.cache_clear()
        find_segments(made_up[0])
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("method", ["vad", "energy"])
@pytest.mark.parametrize("seconds", [0.0, 0.01, 1.0, 40.0])
def test_silence_has_no_segments(method, seconds):
    cuts = find_cuts(np.zeros(round(seconds * RATE), np.float32), method)
    assert cuts.segments == [] and cuts.silence == cuts.seconds == seconds


def test_a_recording_shorter_than_the_shortest_is_counted_as_such(made_up):
    cuts = find_cuts(made_up[0][: RATE * 3 // 2])
    assert cuts.segments == []
    assert 0.5 < cuts.too_short <= 1.5


@pytest.mark.parametrize(
    ("audio", "options", "message"),
    [
        ("gone.wav", {}, "gone.wav: file not found"),
        ("text.wav", {}, "not readable as audio"),
        ("silent.flac", {"method": "ears"}, "found 'ears', expected one of"),
        ("silent.flac", {"max_duration": 3.0}, "at least twice the shortest"),
        (np.zeros((2, 9), np.float32), {}, r"float32 \[2, 9\], expected float32 \[n\]"),
        (np.zeros(9), {}, "found samples float64"),
    ],
)
def test_what_cannot_be_segmented_is_named(tmp_path, audio, options, message):
    (tmp_path / "text.wav").write_text("no audio")
    write_flac(tmp_path / "silent.flac", np.zeros(RATE, np.float32))
    audio = tmp_path / audio if isinstance(audio, str) else audio
    with pytest.raises(RecipeError, match=message):
        find_segments(audio, **options)
