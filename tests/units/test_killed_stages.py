"""Stages 2 to 5 of the recipe, killed at random moments and run again."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.datadir import write_table
from tests.cluster import spawn

RECIPE = Path(__file__).parents[2] / "egs2" / "lamer_ssl" / "ssl1"
HUMAN_SPEECH = Path(__file__).parents[3] / "shared" / "data" / "human_speech"
LABELS = [f"raw/ssl_{s}/text.km{e}" for s in ("train", "dev") for e in ("", ".json")]
WRITTEN = ["units/codebook.npz", "units/tokens.txt", *LABELS]


def command(root, run, *options):
    """The arguments that run.sh gives to Python, for a run of its own."""
    script = root / "show_arguments"
    script.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    script.chmod(0o755)
    folders = {"data": root / "data", "dump": root / run, "exp": root / run / "exp"}
    arguments = [f"--{name}dir={path}" for name, path in folders.items()]
    shown = subprocess.run(
        ["./run.sh", f"--python={script}", *arguments, *options],
        cwd=RECIPE,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    module = "espnet2_lamer.bin.recipe"
    return shown.split(f"{module}\0")[1].removesuffix("\0").split("\0")


def stages(arguments):
    from espnet2_lamer.bin.recipe import main

    os.chdir(RECIPE)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.stderr = open(os.devnull, "w")
    main(arguments)


def finish(arguments):
    """Run to the end; returns the seconds it took."""
    started = time.monotonic()
    process = spawn(stages, arguments)
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - started


def kill_and_finish(arguments, seconds, kills, seed):
    """Kill so many runs at random moments, then let one end; returns the kills."""
    generator, killed = random.Random(seed), 0
    for _ in range(kills):
        process = spawn(stages, arguments)
        process.join(generator.uniform(0, seconds))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        killed += process.exitcode == -signal.SIGKILL
    finish(arguments)
    return killed


def written(root):
    return {name: (root / name).read_bytes() for name in WRITTEN}


@pytest.fixture(scope="module")
def noise_recipe(tmp_path_factory, hubert_dirs):
    """Noise in three languages, and a tiny teacher: ``make(run, *options)``."""
    root = tmp_path_factory.mktemp("recipe")
    generator = np.random.default_rng(0)
    for lang in ("eng", "cmn", "yue"):
        for split, number in (("train", 12), ("dev", 2)):
            folder = root / "data" / f"{split}_{lang}"
            tables = {name: {} for name in ("wav.scp", "text", "utt2spk", "utt2lang")}
            folder.mkdir(parents=True)
            for index in range(number):
                utt = f"{lang}-{split}{index:02d}"
                path = folder / f"{utt}.wav"
                # At another rate and in 24 bit: stage 2 has work to do.
                samples = generator.uniform(
                    -0.5, 0.5, int(generator.uniform(2, 3) * 8e3)
                )
                soundfile.write(path, samples, 8000, subtype="PCM_24")
                tables["wav.scp"][utt] = str(path)
                tables["text"][utt] = f"words {utt}"
                tables["utt2spk"][utt] = utt
                tables["utt2lang"][utt] = lang
            for name, table in tables.items():
                write_table(folder / name, table)
    teacher = hubert_dirs["group_norm"]

    def make(run, *options):
        record = {"source": str(teacher), "path": str(teacher), "sha256": None}
        write_json(
            root / run / "exp" / "checkpoints.json", {"base": record, "teacher": record}
        )
        return command(
            *(root, run, "--stage=2", "--stop_stage=5", "--nj=1"),
            *("--teacher_layer=2", "--n_clusters=20", "--kmeans_hours=0.005"),
            *("--replay_hours=0.005", *options),
        )

    make.root = root
    make.seconds = finish(make("whole"))
    make.written = written(root / "whole")
    return make


def test_labels_do_not_change_when_stages_2_to_5_are_killed(noise_recipe):
    arguments = noise_recipe("killed")
    assert kill_and_finish(arguments, noise_recipe.seconds, kills=3, seed=1)
    assert written(noise_recipe.root / "killed") == noise_recipe.written


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_labels_do_not_change_however_often_stages_are_killed(noise_recipe, seed):
    arguments = noise_recipe(f"killed{seed}")
    assert kill_and_finish(arguments, noise_recipe.seconds, kills=5, seed=seed + 2)
    assert written(noise_recipe.root / f"killed{seed}") == noise_recipe.written


@pytest.mark.slow  # each process of two imports everything
def test_labels_do_not_depend_on_the_number_of_processes(noise_recipe):
    finish(noise_recipe("two", "--nj=2"))
    assert written(noise_recipe.root / "two") == noise_recipe.written
