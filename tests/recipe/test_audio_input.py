"""Audio is an input: stages notice other content, and nothing but that."""

import json
import logging
import os

import numpy as np
import pytest
import soundfile

from espnet2_lamer.data.converting import prepare_audio
from espnet2_lamer.evaluation.runs import made_from
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.recipe.runner import Runner
from espnet2_lamer.recipe.stage import Stage
from espnet2_lamer.recipe.stages import ssl1
from tests.recipe.test_runner import make_options


def write_wav(path, seed, samples=16000, rate=16000):
    noise = 0.1 * np.random.default_rng(seed).standard_normal(samples)
    soundfile.write(path, noise, rate)


def replace(path, seed=99, **options):
    """Write another recording of the same size, and give it an older time."""
    size, times = os.path.getsize(path), os.stat(path)
    write_wav(path, seed, **options)
    assert os.path.getsize(path) == size
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns - 10**12))


class Recipe:
    """A stage that reads three clips, one that formats a clip; counts its runs."""

    def __init__(self, root):
        self.root, self.ran = root, []
        self.clips = [root / f"{name}.wav" for name in "abc"]
        for seed, path in enumerate(self.clips):
            write_wav(path, seed)
        self.scp, self.made = root / "wav.scp", root / "made" / "wav.scp"
        write_table(self.scp, {path.stem: str(path) for path in self.clips})

    def run(self, **changes):
        def read(options):
            self.ran.append(1)
            (self.root / "out").write_text("same")

        def formatted(options):
            self.ran.append(2)
            write_wav(self.root / "converted.wav", 7)
            write_table(self.made, {"a": str(self.root / "converted.wav")})

        audio = {"audio": lambda o: [self.scp, self.root / "not_there"]}
        out, made = (lambda o: [self.root / "out"]), (lambda o: [self.made])
        stages = [
            Stage(1, "read", "read", "", read, outputs=out, **audio),
            Stage(2, "make", "make", "", formatted, outputs=made, audio_after=made),
        ]
        self.ran.clear()
        Runner(stages, make_options(self.root, **changes)).run()
        return list(self.ran)

    def record(self, number):
        return self.root / "exp" / "stages" / f"{number:02d}.json"


@pytest.fixture
def recipe(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    recipe = Recipe(tmp_path)
    assert recipe.run() == [1, 2]
    assert recipe.run() == []
    caplog.clear()
    return recipe


def test_a_replaced_clip_is_noticed_and_counted(recipe, caplog):
    replace(recipe.clips[1])
    assert recipe.run() == [1]
    text = f"runs again: 1 of 3 audio files of {recipe.scp} changed"
    assert text in caplog.text
    assert recipe.run() == []


def test_clips_that_come_and_go_are_noticed(recipe, caplog):
    content = recipe.clips[0].read_bytes()
    recipe.clips[0].unlink()
    assert recipe.run() == [1]
    recipe.clips[0].write_bytes(content)
    assert recipe.run() == [1]
    recipe.clips[0].write_bytes(content[:-100])
    recipe.clips[2].write_bytes(content[:-200])
    assert recipe.run() == [1]
    assert "2 of 3 audio files" in caplog.text


def test_a_touched_or_copied_corpus_changes_nothing(recipe, caplog):
    for path in recipe.clips:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    assert recipe.run() == []
    assert "3 files with other times than before, same content" in caplog.text


def test_a_converted_file_that_changed_is_made_again(recipe, caplog):
    write_wav(recipe.root / "converted.wav", 8)
    assert recipe.run() == [2]
    assert f"1 of 1 audio files of {recipe.made} changed" in caplog.text
    assert recipe.run() == []


def test_a_record_without_audio_stays_done_and_is_filled_in(recipe, caplog):
    for number in (1, 2):
        record = json.loads(recipe.record(number).read_text())
        record["fingerprint"].pop("audio")
        record.pop("audio")
        recipe.record(number).write_text(json.dumps(record))
    for path in (recipe.root / "exp" / "stages" / "audio").iterdir():
        path.unlink()
    assert recipe.run() == []
    replace(recipe.clips[0])
    write_wav(recipe.root / "converted.wav", 8)
    assert recipe.run() == [1, 2]
    assert f"1 of 3 audio files of {recipe.scp} changed" in caplog.text


def test_a_stage_that_is_not_run_is_named_when_its_audio_changed(recipe, caplog):
    replace(recipe.clips[0])
    assert recipe.run(skip_stages=[1]) == []
    assert "stage 1 (read) is out of date" in caplog.text
    assert f"1 of 3 audio files of {recipe.scp} changed" in caplog.text


def test_lists_that_no_record_names_are_removed(recipe):
    folder = recipe.root / "exp" / "stages" / "audio"
    before = len(list(folder.iterdir()))
    for seed in (50, 51, 52):
        replace(recipe.clips[0], seed)
        recipe.run()
    assert len(list(folder.iterdir())) == before


def test_every_stage_that_reads_audio_says_so():
    reading = {1, 2, 3, 5, 7, 8, 9, 10, 11, 12}
    nothing = Stage(0, "", "", "", lambda o: None)
    assert reading == {
        stage.number
        for stage in ssl1
        if stage.audio.__code__ is not nothing.audio.__code__
    }


def test_the_audio_of_pretraining_is_that_of_its_tables(tmp_path):
    options = make_options(
        tmp_path, datadir=tmp_path / "data", dumpdir=tmp_path / "dump", replay_langs=[]
    )
    for name in ("train_cmn", "dev_cmn", "train_yue", "dev_yue", "test_yue"):
        write_table(options.datadir / name / "wav.scp", {"u": "/a.wav"})
        write_table(options.datadir / name / "utt2lang", {"u": "yue"})
    found = ssl1["selection"].audio(options)
    assert {path.parent.name for path in found} >= {
        *("train_cmn", "train_yue", "dev_cmn", "dev_yue", "test_yue")
    }
    sets = [options.raw / name / "wav.scp" for name in ("ssl_train", "ssl_dev")]
    for name in ("labels", "pretraining", "analysis"):
        assert ssl1[name].audio(options) == sets
    assert ssl1["features"].audio(options) == sets[:1]


def test_converted_audio_follows_the_content_of_its_original(tmp_path, monkeypatch):
    path, target = tmp_path / "a.wav", tmp_path / "converted"
    write_wav(path, 1, 8000, 8000)

    def prepare():
        return prepare_audio({"u": str(path)}, "data/x/wav.scp", target)["u"].path

    first = open(prepare(), "rb").read()
    made = os.stat(prepare()).st_mtime_ns
    os.utime(path, (5, 5))
    assert os.stat(prepare()).st_mtime_ns == made
    replace(path, 2, samples=8000, rate=8000)
    assert open(prepare(), "rb").read() != first
    # A file of this content, but damaged, is made again.
    second = open(prepare(), "rb").read()
    with open(prepare(), "r+b") as handle:
        handle.truncate(len(second) // 2)
    assert open(prepare(), "rb").read() == second


def test_files_of_a_large_set_go_into_folders_and_flat_ones_are_found(
    tmp_path, monkeypatch
):
    from espnet2_lamer.data import converting

    wavs = {}
    for number in range(6):
        path = tmp_path / f"{number}.wav"
        write_wav(path, number, 8000, 8000)
        wavs[f"u{number}"] = str(path)
    few = {utt: wavs[utt] for utt in ("u0", "u1")}
    target = tmp_path / "audio"
    flat = prepare_audio(few, "data/x/wav.scp", target)
    monkeypatch.setattr(converting, "_FLAT", 3)
    found = prepare_audio(wavs, "data/x/wav.scp", target)
    assert [found[utt].path for utt in few] == [flat[utt].path for utt in few]
    for utt in wavs.keys() - few.keys():
        folder = os.path.relpath(os.path.dirname(found[utt].path), target)
        assert len(folder) == 2
    again = prepare_audio(dict(list(wavs.items())[3:]), "data/x/wav.scp", target)
    assert {utt: a.path for utt, a in again.items()} == {
        utt: found[utt].path for utt in again
    }


def test_a_record_of_an_earlier_version_holds_while_its_audio_is_older(tmp_path):
    write_wav(tmp_path / "a.wav", 1)
    write_table(tmp_path / "wav.scp", {"a": str(tmp_path / "a.wav")})
    record = tmp_path / "inputs.json"
    record.write_text('{"seed": 0}')
    os.utime(record)
    inputs, tables = {"seed": 0, "audio": "x"}, [tmp_path / "wav.scp"]
    assert made_from(record, inputs, tables)
    replace(tmp_path / "a.wav")
    assert not made_from(record, inputs, tables)
    record.write_text('{"seed": 0, "audio": "x"}')
    assert made_from(record, inputs, tables)
    assert not made_from(record, inputs | {"audio": "y"}, tables)
    assert read_table(tables[0])
