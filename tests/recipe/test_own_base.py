"""``--retrain true`` on speech of one's own: who hears what, and what is kept."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.recipe import base_training
from tests.recipe.test_end_to_end import RECIPE, _tiny_hubert


@pytest.fixture
def heard(tmp_path, monkeypatch):
    """What the two trainings are given; instead of training they write a model."""
    found = {}

    def train(train_dirs, dev_dirs, config, work_dir, output_dir, seed, nj):
        found[work_dir.name] = [
            read_table(folder / "utt2lang")
            for dirs in (train_dirs, dev_dirs)
            for folder in dirs
        ]
        assert all((folder / "utt2num_samples").is_file() for folder in train_dirs)
        output_dir.mkdir(parents=True)
        _tiny_hubert(output_dir, len(found))

    monkeypatch.setattr(base_training, "train_from_nothing", train)
    monkeypatch.chdir(RECIPE)
    return found


def manifest(path, langs, seed):
    rng = np.random.default_rng(seed)
    lines = ["utt_id\tpath\tlang\tsplit"]
    for lang in langs:
        for split, count in (("train", 4), ("dev", 2), ("test", 2)):
            for number in range(count):
                utt = f"{lang}_{split}_{number}"
                audio = path.parent / f"{path.stem}_{utt}.wav"
                soundfile.write(audio, rng.normal(0, 0.1, 40000), 16000)
                lines.append(f"{utt}\t{audio}\t{lang}\t{split}")
    path.write_text("\n".join(lines) + "\n")
    return path


def run(root, listed, **more):
    from espnet2_lamer.bin.recipe import main

    options = {
        "stage": 0,
        "stop_stage": 0,
        "retrain": "true",
        "corpus": "manifest",
        "manifest": listed,
        "replay_langs": "eng",
        "new_langs": "cmn",
        "asr_layer": 1,
        "lid_layer": 1,
        "allocation": "2,3",
        "nj": 1,
        **{f"{name}dir": root / name for name in ("data", "dump", "exp")},
    }
    main([f"--{name}={value}" for name, value in (options | more).items()])


def test_the_base_hears_old_languages_and_the_teacher_all(tmp_path, heard, caplog):
    listed = manifest(tmp_path / "one.tsv", ("eng", "cmn", "deu"), 0)
    run(tmp_path, listed)
    assert not [text for text in caplog.messages if "reads --manifest" in text]
    # Held-out speech is in neither training set, nor a language that is not asked for.
    for name, langs in (("base", ["eng"]), ("teacher", ["eng", "cmn"])):
        for split, count, found in zip(
            ("train", "dev"), (4, 2), heard[name], strict=True
        ):
            assert found == {
                f"{lang}_{split}_{number}": lang
                for lang in langs
                for number in range(count)
            }
    recorded = Path(tmp_path / "exp/checkpoints.json").read_text()
    assert str(tmp_path / "exp/stage0/base/final") in recorded
    assert str(tmp_path / "exp/stage0/teacher/final") in recorded


def test_a_base_of_other_speech_is_trained_anew_and_the_first_is_kept(tmp_path, heard):
    run(tmp_path, manifest(tmp_path / "one.tsv", ("eng", "cmn"), 0))
    final = tmp_path / "exp/stage0/base/final/model.safetensors"
    first = final.read_bytes()
    run(tmp_path, tmp_path / "one.tsv")
    assert final.read_bytes() == first
    heard.clear()
    run(tmp_path, manifest(tmp_path / "two.tsv", ("eng", "cmn"), 1))
    assert {*heard} == {"base", "teacher"}
    kept = list((tmp_path / "exp").glob("stage0?*/base/final/model.safetensors"))
    assert [path.read_bytes() for path in kept] == [first]


def test_without_an_old_language_there_is_no_base(tmp_path, heard):
    listed = manifest(tmp_path / "one.tsv", ("cmn",), 0)
    with pytest.raises(RecipeError, match="--replay_langs"):
        run(tmp_path, listed, replay_langs="")
    assert not heard
