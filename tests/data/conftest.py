"""Small data directories with real audio files."""

from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import soundfile

from espnet2_lamer.fileio.datadir import write_spk2utt, write_table


def write_audio(path, seconds=3.0, rate=16000, channels=1, seed=0, **options):
    """Write noise; the format follows the suffix unless ``format`` says otherwise."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (round(seconds * rate), channels)
    samples = 0.1 * np.random.default_rng(seed).standard_normal(shape)
    if path.suffix == ".opus":
        options = {"format": "OGG", "subtype": "OPUS", **options}
    soundfile.write(path, samples.astype(np.float32), rate, **options)
    return path


@pytest.fixture
def audio_file():
    return write_audio


@pytest.fixture
def make_set(tmp_path):
    """Make ``<root>/data/<split>_<lang>`` with one file per given duration."""

    def make(split, lang, durations, texts=None, suffix=".flac", **options):
        directory = tmp_path / "data" / f"{split}_{lang}"
        utts = [f"{lang}_{split}_{n:03d}" for n in range(len(durations))]
        wavs = {}
        for utt, seconds in zip(utts, durations, strict=True):
            path = tmp_path / "audio" / f"{utt}{suffix}"
            wavs[utt] = str(
                write_audio(path, seconds, seed=crc32(utt.encode()), **options)
            )
        write_table(directory / "wav.scp", wavs)
        write_table(directory / "utt2lang", dict.fromkeys(utts, lang))
        write_spk2utt(directory, {utt: f"{lang}_spk" for utt in utts})
        if texts is not None:
            pairs = zip(utts, texts, strict=True)
            write_table(directory / "text", {utt: text for utt, text in pairs if text})
        return directory

    return make
