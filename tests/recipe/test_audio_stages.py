"""Stages 2 to 5 on audio that is damaged, repaired, replaced and touched."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.datadir import read_table, write_table

RECIPE = Path(__file__).parents[2] / "egs2" / "lamer_ssl" / "ssl1"


class Corpus:
    """Two languages of short noises, of which the recipe is run on with MFCC units."""

    def __init__(self, root):
        self.root = root
        generator = np.random.default_rng(0)
        for name in ("train_yue", "dev_yue", "train_eng", "dev_eng"):
            folder = root / "data" / name
            folder.mkdir(parents=True)
            tables = {table: {} for table in ("wav.scp", "utt2spk", "utt2lang")}
            for number in range(6):
                utt = f"{name}-{number}"
                path = folder / f"{utt}.wav"
                # Every other one at another rate: it is converted.
                rate = 8000 * (1 + number % 2)
                soundfile.write(path, 0.1 * generator.standard_normal(2 * rate), rate)
                tables["wav.scp"][utt] = str(path)
                tables["utt2spk"][utt] = utt
                tables["utt2lang"][utt] = name[-3:]
            for table, rows in tables.items():
                write_table(folder / table, rows)
        teacher = {"source": "mfcc", "path": "mfcc", "sha256": None}
        records = {"base": teacher, "teacher": teacher}
        write_json(root / "exp" / "checkpoints.json", records)

    def run(self):
        from espnet2_lamer.bin.recipe import main

        folders = [
            f"--{name}dir={self.root / name}" for name in ("data", "dump", "exp")
        ]
        options = (
            "--preset=mini --stage=2 --stop_stage=5 --nj=1 --new_langs=yue "
            "--replay_langs=eng --replay_hours=1 --kmeans_hours=1 --n_clusters=4 "
            "--teacher_layer=0 --max_bad_audio=40 --min_duration=1 --corpus=manifest"
        )
        main([*folders, *options.split()])

    def clip(self, utt):
        return self.root / "data" / utt.rpartition("-")[0] / f"{utt}.wav"

    def written(self):
        """What follows from audio, by file."""
        raw = self.root / "dump" / "raw"
        labels = [raw / f"ssl_{s}" / "text.km" for s in ("train", "dev")]
        return [path.read_bytes() for path in labels]

    def again(self, root):
        """What a run from the beginning writes."""
        fresh = Corpus.__new__(Corpus)
        fresh.root = root
        shutil.copytree(self.root / "data", root / "data")
        for scp in (root / "data").glob("*/wav.scp"):
            text = scp.read_text()
            scp.write_text(text.replace(str(self.root), str(root)))
        source = self.root / "exp" / "checkpoints.json"
        write_json(root / "exp" / "checkpoints.json", json.loads(source.read_text()))
        fresh.run()
        return fresh.written()


@pytest.fixture
def corpus(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(RECIPE)
    caplog.set_level("INFO")
    corpus = Corpus(tmp_path / "one")
    whole = corpus.clip("train_yue-3").read_bytes()
    corpus.clip("train_yue-3").write_bytes(whole[: len(whole) // 2])
    corpus.run()
    raw = corpus.root / "dump" / "raw"
    assert "train_yue-3" in (raw / "skipped_audio.tsv").read_text()
    assert "train_yue-3" not in read_table(raw / "ssl_train" / "wav.scp")
    caplog.clear()
    corpus.run()
    assert caplog.text.count("done, nothing changed") == 4
    caplog.clear()
    corpus.whole = whole
    return corpus


def test_a_skipped_clip_that_was_repaired_comes_back(corpus, tmp_path, caplog):
    corpus.clip("train_yue-3").write_bytes(corpus.whole)
    corpus.run()
    assert "1 of 6 audio files of" in caplog.text and "train_yue/wav.scp" in caplog.text
    raw = corpus.root / "dump" / "raw"
    assert "train_yue-3" in read_table(raw / "ssl_train" / "wav.scp")
    assert "train_yue-3" not in (raw / "skipped_audio.tsv").read_text()
    assert corpus.written() == corpus.again(tmp_path / "two")


@pytest.mark.parametrize("number", [0, 1])
def test_a_recording_replaced_by_one_of_its_size_is_used(
    corpus, tmp_path, caplog, number
):
    """Number 0 is converted, number 1 kept as it is."""
    path = corpus.clip(f"train_yue-{number}")
    before, old = corpus.written(), os.stat(path)
    samples, rate = soundfile.read(path, dtype="int16")
    soundfile.write(path, np.sort(samples), rate)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns - 10**12))
    assert os.path.getsize(path) == old.st_size
    corpus.run()
    for number in (2, 3, 5):
        assert f"stage {number}: " in caplog.text
    assert caplog.text.count("runs again: 1 of ") >= 2
    assert corpus.written() == corpus.again(tmp_path / "two") != before


def test_a_clip_outside_of_the_clusters_sample_is_labelled_alone(corpus, caplog):
    path = corpus.clip("dev_yue-1")
    samples, rate = soundfile.read(path, dtype="int16")
    soundfile.write(path, samples[::-1], rate)
    corpus.run()
    assert "stage 3: teacher features: done, nothing changed" in caplog.text
    assert "the labels of 11 of 12 utterances are kept" in caplog.text
    assert "the labels of 11 of 11 utterances are kept" in caplog.text


def test_a_copied_corpus_is_looked_at_and_nothing_is_redone(corpus, caplog):
    for path in (corpus.root / "data").glob("*/*.wav"):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    corpus.run()
    assert caplog.text.count("done, nothing changed") == 4
    assert "files with other times than before, same content" in caplog.text
