"""Two runs at once, and runs that are killed: one works, the other stops or waits."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace

import numpy as np
import pytest
import soundfile

from espnet2_lamer.fileio.locks import Busy
from espnet2_lamer.recipe.runner import Runner
from espnet2_lamer.recipe.stage import Stage
from espnet2_lamer.train.console import one_training
from espnet2_lamer.units.features import dump_features
from espnet2_lamer.units.kmeans import KmeansConfig, learn_kmeans
from espnet2_lamer.units.teacher import load_teacher
from tests.recipe.test_runner import make_options

CONTEXT = multiprocessing.get_context("fork")


class Runs:
    """Stages: 0 and 3 shared, 1 of each tag, 2 for several runs at once."""

    def __init__(self, root):
        self.root = root
        # Files: what a killed process holds of a lock or queue would never be free.
        self.gate = root / "gate"
        self.log = root / "entered"
        self.log.touch()
        self.started = []

    def entered(self):
        return [tuple(map(int, x.split())) for x in self.log.read_text().splitlines()]

    def stages(self):
        def work(number):
            def run(options):
                with self.log.open("a") as handle:
                    handle.write(f"{number} {os.getpid()}\n")
                ends = time.monotonic() + 60
                while not self.gate.exists() and time.monotonic() < ends:
                    time.sleep(0.02)
                path = self.output(number, options)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{number} {options.ssl_tag} {os.getpid()}")

            return run

        def stage(number, **more):
            outputs = lambda o: [self.output(number, o)]  # noqa: E731
            return Stage(
                number, f"s{number}", "s", "base", work(number), outputs=outputs, **more
            )

        variant = {"variant": lambda o: f"_{o.ssl_tag}"}
        return [
            stage(0, shared=True),
            stage(1, keep=lambda o: [self.root / "exp" / o.ssl_tag], **variant),
            stage(2, together=True, **variant),
            stage(3, shared=True),
        ]

    def output(self, number, options):
        tag = "all" if number in (0, 3) else options.ssl_tag
        return options.expdir / tag / f"{number}.txt"

    def run(self, **changes):
        values = {"ssl_tag": "one", "stop_stage": 3} | changes
        Runner(self.stages(), make_options(self.root, **values)).run()

    def start(self, stage, **changes):
        """Run in a process of its own, until a stage is at work."""
        process = CONTEXT.Process(target=self.run, kwargs=changes)
        process.start()
        self.started.append(process)
        ends = time.monotonic() + 20
        while (stage, process.pid) not in self.entered():
            assert time.monotonic() < ends
            time.sleep(0.02)
        return process


@pytest.fixture
def runs(tmp_path, caplog):
    caplog.set_level("INFO")
    found = Runs(tmp_path)
    yield found
    for process in found.started:
        process.kill()
        process.join()


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.join()


@pytest.mark.parametrize("stage", [0, 1])
def test_the_second_run_stops_and_names_the_first(runs, stage):
    if stage:
        runs.gate.touch()
        runs.run(stop_stage=0)
        runs.gate.unlink()
    first = runs.start(stage)
    with pytest.raises(Busy, match=f"process {first.pid} on .*, since 20"):
        runs.run(stage=stage)
    runs.gate.touch()
    first.join()
    assert first.exitcode == 0


def test_a_killed_run_is_taken_over_with_a_line(runs, caplog):
    first = runs.start(0)
    kill(first)
    runs.gate.touch()
    runs.run()
    assert f"taken over from a killed process: process {first.pid}" in caplog.text
    assert "stage 0: s: goes on where it stopped" in caplog.text


def test_what_a_first_run_is_about_to_make_is_not_called_missing(runs):
    first = runs.start(0)
    stages = runs.stages()
    stages[1] = Stage(1, "s1", "s", "", print, inputs=lambda o: [runs.output(0, o)])
    with pytest.raises(Busy, match=str(first.pid)):
        Runner(stages, make_options(runs.root, stage=1, ssl_tag="one")).run()


def test_two_pretrainings_stand_side_by_side_and_keep_their_data(runs):
    runs.gate.touch()
    runs.run(stop_stage=0)
    runs.gate.unlink()
    first, second = runs.start(1, ssl_tag="one"), runs.start(1, ssl_tag="two")
    with pytest.raises(Busy, match=f"{first.pid}.*{second.pid}"):
        runs.run(base="other", stop_stage=0)
    runs.gate.touch()
    for process in (first, second):
        process.join()
        assert process.exitcode == 0
    # What both need in the end was made by one of them; the other waited.
    assert [number for number, _ in runs.entered()].count(3) == 1


def test_heads_of_one_pretraining_may_be_trained_by_two_runs(runs):
    runs.gate.touch()
    runs.run(stop_stage=1)
    runs.gate.unlink()
    runs.start(2)
    runs.start(2)


def test_a_finished_run_is_looked_at_beside_one_that_works(runs, caplog):
    runs.gate.touch()
    runs.run(stop_stage=0)
    runs.gate.unlink()
    runs.start(1)
    caplog.clear()
    runs.run(stop_stage=0)
    assert "stage 0: s: done, nothing changed" in caplog.text


@pytest.mark.parametrize(
    "name", ["assign_units", pytest.param("learn_kmeans", marks=pytest.mark.slow)]
)
def test_of_two_commands_at_once_one_stops_and_a_killed_one_is_taken_over(
    tmp_path, name, command_of
):
    command, lock = command_of(name), tmp_path / ".made.lock"
    first = subprocess.Popen(command, **PIPES)
    while str(first.pid) not in (lock.read_text() if lock.exists() else ""):
        assert first.poll() is None
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)  # in the middle of its work
    second = subprocess.run(command, **PIPES)
    first.kill()
    first.communicate()
    assert second.returncode == 1 and "Traceback" not in second.stderr
    assert f"process {first.pid} on" in second.stderr
    third = subprocess.run(command, **PIPES)
    assert third.returncode == 0, third.stderr
    assert f"taken over from a killed process: process {first.pid}" in third.stderr


def train(directory, entered, rank=None):
    options = {"output_dir": str(directory), "print_config": False}
    with one_training(Namespace(**options, dist_rank=rank, dist_launcher=None)):
        entered.touch()
        time.sleep(60 if rank is None else 0)


def test_a_training_has_its_folder_alone_with_its_ranks(tmp_path, monkeypatch):
    entered = tmp_path / "entered"
    first = CONTEXT.Process(target=train, args=(tmp_path / "exp", entered))
    first.start()
    while not entered.exists():
        time.sleep(0.01)
    with pytest.raises(Busy, match=f"exp: another.*process {first.pid}"):
        train(tmp_path / "exp", entered, 0)
    train(tmp_path / "exp", entered, 1)
    train(tmp_path / "other", entered, 0)
    monkeypatch.setenv("RANK", "1")
    entered.unlink()
    second = CONTEXT.Process(target=train, args=(tmp_path / "exp", entered))
    second.start()
    while not entered.exists():
        time.sleep(0.01)
    kill(first)
    kill(second)
    monkeypatch.delenv("RANK")
    train(tmp_path / "exp", entered, 0)


PIPES = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}


@pytest.fixture
def command_of(tmp_path):
    """Return a function that returns a command on some noise, mfcc as its teacher."""
    rng = np.random.default_rng(0)
    scp = tmp_path / "wav.scp"
    with scp.open("w") as lines:
        for number in range(40):
            path = tmp_path / f"{number}.wav"
            soundfile.write(path, rng.normal(size=32000) * 0.1, 16000)
            lines.write(f"u{number:02d} {path}\n")
    features, codebook = tmp_path / "features", tmp_path / "codebook.npz"
    dump_features(load_teacher("mfcc", None), scp, features)
    learn_kmeans(features, codebook, KmeansConfig(4))
    speech = ["--teacher=mfcc", f"--wav_scp={scp}"]
    words = {
        "assign_units": [*speech, f"--codebook={codebook}"],
        "learn_kmeans": [f"--features={features}", "--n_clusters=4"],
    }

    def command(name):
        program = [sys.executable, "-m", f"espnet2_lamer.bin.{name}"]
        return [*program, *words[name], f"--output={tmp_path / 'made'}"]

    return command
