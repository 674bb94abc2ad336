"""Stages 2 to 5 of the recipe, killed at random moments and run again."""

import os
import random
import shutil
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
from tests.cluster import Cluster, spawn, wait_until

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


class Recipe:
    """Stages 2 to 5 on a corpus, in any number of runs that share nothing but it.

    Args:
        root: ``data`` is in it.
        teacher: A Hugging Face directory.
        options: Of run.sh.
    """

    def __init__(self, root, teacher, *options):
        self.root = root
        self._teacher = {"source": teacher, "path": teacher, "sha256": None}
        self._options = options
        finish(["--help"])  # starts what processes are forked from
        self.seconds = finish(self.arguments("whole"))
        self.expected = self.written("whole")

    def arguments(self, run, *options):
        records = {"base": self._teacher, "teacher": self._teacher}
        write_json(self.root / run / "exp" / "checkpoints.json", records)
        return command(
            *(self.root, run, "--stage=2", "--stop_stage=5", "--nj=1"),
            *(*self._options, *options),
        )

    def kill_and_finish(self, run, kills, seed):
        """Kill it so many times at random moments, then let it end."""
        generator, span = random.Random(seed), self.seconds
        while kills:
            process = spawn(stages, self.arguments(run))
            process.join(generator.uniform(0, span))
            process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            if process.exitcode == 0:
                # Too late: from the beginning, and sooner.
                shutil.rmtree(self.root / run)
                span /= 2
            else:
                kills -= 1
        finish(self.arguments(run))
        return self.written(run)

    def written(self, run):
        return {name: (self.root / run / name).read_bytes() for name in WRITTEN}


@pytest.fixture(scope="module")
def noise(tmp_path_factory, hubert_dirs):
    """Noise in three languages, and a tiny teacher."""
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
    options = ("--teacher_layer=2", "--n_clusters=20", "--kmeans_hours=0.005")
    teacher = str(hubert_dirs["group_norm"])
    return Recipe(root, teacher, *options, "--replay_hours=0.005")


@pytest.mark.slow
def test_labels_do_not_change_when_stages_2_to_5_are_killed(noise):
    assert noise.kill_and_finish("killed", kills=3, seed=1) == noise.expected


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_labels_do_not_change_however_often_stages_are_killed(noise, seed):
    run = f"killed{seed}"
    assert noise.kill_and_finish(run, kills=5, seed=seed + 2) == noise.expected


@pytest.fixture(scope="module", params=["mini", "human_speech"])
def speech_recipe(request, tmp_path_factory):
    """A part of each corpus, with the mini teacher."""
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "mini":
        from espnet2_lamer.data.mini import build_mini

        build_mini(root / "data", nj=1, seed=0, minutes_scale=0.04)
    elif HUMAN_SPEECH.is_dir():
        header, *lines = (HUMAN_SPEECH / "manifest.tsv").read_text().splitlines()
        rows = [line.split("\t") for line in lines]
        kept = [header]
        for lang in ("eng", "cmn", "yue"):
            for split, number in (("train", 16), ("dev", 3)):
                own = [row for row in rows if row[2:4] == [lang, split]][:number]
                for row in own:
                    row[1] = str(HUMAN_SPEECH / row[1])
                    kept.append("\t".join(row))
        manifest = root / "manifest.tsv"
        manifest.write_text("".join(f"{line}\n" for line in kept))
        options = ("--corpus=manifest", f"--manifest={manifest}", "--stage=1")
        finish(command(root, "data_only", *options, "--stop_stage=1"))
    else:
        pytest.skip("the human speech set is not here")
    options = ("--n_clusters=50", "--kmeans_hours=0.01", "--replay_hours=0.02")
    return Recipe(root, "mini/teacher", *options)


@pytest.mark.slow  # each of two processes imports everything
def test_labels_of_speech_are_the_same_for_one_process_and_for_two(speech_recipe):
    finish(speech_recipe.arguments("two", "--nj=2"))
    assert speech_recipe.written("two") == speech_recipe.expected


@pytest.mark.slow
def test_labels_of_speech_are_the_same_when_stages_are_killed(speech_recipe):
    found = speech_recipe.kill_and_finish("killed", kills=4, seed=0)
    assert found == speech_recipe.expected


@pytest.mark.slow
def test_labels_of_speech_are_the_same_on_a_cluster_that_loses_a_worker(speech_recipe):
    cluster = Cluster()
    victim, _ = cluster.add_worker(), cluster.add_worker()
    cluster.wait_for(workers=2)
    option = f"--dask={cluster.address}"
    process = spawn(stages, speech_recipe.arguments("cluster", option))
    shards = speech_recipe.root / "cluster" / "raw" / "ssl_train" / "text.km.shards"
    try:
        wait_until(lambda: len(list(shards.glob("*.done.json"))) > 1, seconds=600)
        victim.kill()
        process.join()
    finally:
        process.kill()
        cluster.close()
    assert process.exitcode == 0
    assert speech_recipe.written("cluster") == speech_recipe.expected
