"""Long recordings without text through the recipe, to a packed model."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile
import soxr

from benchmarks.joined_speech import inside, join
from espnet2_lamer.data.segments import read_segments
from espnet2_lamer.fileio.datadir import read_table
from tests.recipe.test_unlabelled import run

#: Of each recording: suffix, rate, channels, noise and music in dB below the speech.
KINDS = (
    (".wav", 16000, 1, None, None),
    (".flac", 44100, 2, 20.0, None),
    (".mp3", 44100, 2, 30.0, 5.0),
    (".opus", 48000, 1, 10.0, None),
    (".ogg", 22050, 1, 15.0, None),
)


def write_recordings(folder, utterances):
    """Join speech to five recordings; returns the pauses of each."""
    folder.mkdir(parents=True)
    pauses = {}
    each = len(utterances) // len(KINDS)
    for n, (suffix, rate, channels, snr, music) in enumerate(KINDS):
        own = utterances[n * each : (n + 1) * each]
        joined = join(own, n, snr=snr, music=music)
        samples = soxr.resample(joined.samples, 16000, rate)
        kind = {"format": "OGG", "subtype": "OPUS"} if suffix == ".opus" else {}
        path = folder / f"day {n}{suffix}"
        soundfile.write(path, np.stack([samples] * channels, 1), rate, **kind)
        pauses[f"day_{n}"] = joined.pauses
    return pauses


@pytest.mark.slow  # all stages
def test_five_recordings_become_a_packed_model(tmp_path, monkeypatch, caplog):
    from espnet2_lamer.data.mini import build_mini

    build_mini(tmp_path / "mini", nj=1, seed=0, minutes_scale=0.15, langs=["cmn"])
    tables = sorted((tmp_path / "mini").glob("*/wav.scp"))
    wavs = [path for table in tables for path in read_table(table).values()]
    speech = [soundfile.read(path, dtype="float32")[0] for path in wavs[:60]]
    pauses = write_recordings(tmp_path / "radio/xho", speech)
    # A folder of speech of one language that nobody has listed, and nothing else.
    options = {
        "new_langs": "xho",
        "replay_langs": "",
        "segment": "vad",
        "min_duration": 2.0,
    }
    run(tmp_path, tmp_path / "radio", monkeypatch, **options)
    assert (tmp_path / "exp/packed/ssl_lamer.zip").is_file()
    good, owners = [], {}
    for path in (tmp_path / "data").glob("*_xho/segments"):
        for recording, (start, end) in read_segments(path).values():
            good += [inside([x], pauses[recording]) for x in (start, end)]
            owners.setdefault(recording, set()).add(path.parent.name)
    assert len(good) > 30 and np.mean(good) >= 0.9
    assert all(len(sets) == 1 for sets in owners.values())
    # A second run finds every stage done, and a changed recording.
    caplog.set_level("INFO")
    run(tmp_path, tmp_path / "radio", monkeypatch, **options)
    done = [m for m in caplog.messages if m.endswith("done, nothing changed")]
    assert len(done) == 15
    caplog.clear()
    path = tmp_path / "radio/xho/day 0.wav"
    samples, rate = soundfile.read(path)
    soundfile.write(path, samples[: len(samples) // 2], rate)
    run(tmp_path, tmp_path / "radio", monkeypatch, **options, stop_stage=2)
    assert "4 of 5 recordings were segmented before" in caplog.messages


_GROWTH = """
import resource, sys
from espnet2_lamer.data.converting import prepare_audio
from espnet2_lamer.data.segmentation import find_segments
from espnet2_lamer.data.segments import part_of

def convert(path, out):
    found = find_segments(path)
    wavs = {f"u{n}": part_of(path, s.start, s.end) for n, s in enumerate(found)}
    wavs = wavs or {"u0": part_of(path, 0.0, 2.0)}
    prepare_audio(wavs, "data/train/wav.scp", out, limits=(0.0, 30.0))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

short, long, out = sys.argv[1:]
print(convert(short, out + "/short"), convert(long, out + "/long"))
"""


@pytest.mark.slow  # an hour of audio
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in kilobytes")
def test_an_hour_is_segmented_and_cut_in_less_than_300_mb(tmp_path):
    generator = np.random.default_rng(0)
    noise = (0.05 * generator.standard_normal((30 * 44100, 2))).astype(np.float32)
    for name, minutes in (("short", 1), ("long", 60)):
        path = tmp_path / f"{name}.wav"
        with soundfile.SoundFile(path, "w", 44100, 2, subtype="PCM_16") as file:
            for _ in range(2 * minutes):
                file.write(noise)
    words = [str(tmp_path / n) for n in ("short.wav", "long.wav", "out")]
    command = [sys.executable, "-c", _GROWTH, *words]
    printed = subprocess.run(command, check=True, capture_output=True, text=True)
    before, after = map(int, printed.stdout.split())
    assert after - before < 300_000
