"""Trainings of the command line on real GPUs, killed and run again.

What :mod:`tests.train.test_faults` does on CPUs in forked processes, which a GPU does
not bear.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.gpu.test_training import distance
from tests.train.small_training import command, outcome

ROOT = Path(__file__).parents[2]
# A process takes longer to start than to train.
LIMIT = 600
ONE = {"checkpoint_interval": 1, "monitor_utts": 1}


class Training:
    """One process group that trains, and its messages."""

    def __init__(self, corpus, output, ngpu, **changes):
        options = command(corpus, output, **(ONE | changes))
        options += ["--ngpu", str(ngpu)]
        if ngpu > 1:
            options += ["--multiprocessing_distributed", "true"]
        self.log = output / "messages.log"
        with open(self.log, "a", encoding="utf-8") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "espnet2_lamer.bin.hubert_train", *options],
                cwd=ROOT,
                env=os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )

    def wait(self):
        try:
            return self.process.wait(LIMIT)
        finally:
            if self.process.poll() is None:
                self.kill(signal.SIGKILL)

    def kill(self, number):
        os.killpg(self.process.pid, number)
        return self.process.wait(LIMIT)

    def kill_after(self, checkpoint, number):
        """Send a signal as soon as this checkpoint is whole; the exit code."""
        deadline = time.monotonic() + LIMIT
        while not Path(f"{checkpoint}.sha256").exists():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.002)
        return self.kill(number)


def check_resumed(corpus, root, ngpu, **changes):
    """A killed and a preempted training end with the weights of undisturbed ones."""
    for name in ("whole", "again"):
        training = Training(corpus, root / name, ngpu, **changes)
        assert training.wait() == 0, training.log.read_text()[-3000:]
    found = outcome(root / "whole")
    # Two undisturbed trainings agree so far: kernels may add in any order.
    usual = distance(found, outcome(root / "again"))
    for name, number, code in (
        ("killed", signal.SIGKILL, {-9}),
        # In the middle of an update, or after the last one.
        ("preempted", signal.SIGTERM, {143, 0}),
    ):
        output = root / name
        training = Training(corpus, output, ngpu, **changes)
        first = output / "checkpoints/update_00000001.pth"
        assert training.kill_after(first, number) in code, training.log.read_text()
        training = Training(corpus, output, ngpu, **changes)
        assert training.wait() == 0, training.log.read_text()[-3000:]
        assert "resumed after update" in training.log.read_text()
        disturbed = outcome(output)
        assert disturbed["updates"] == found["updates"]
        assert distance(found, disturbed) <= max(1e-4, 10 * usual), name


@pytest.mark.gpu
def test_a_killed_training_on_a_gpu_ends_with_the_same_weights(corpus, tmp_path):
    check_resumed(corpus, tmp_path, 1)


@pytest.mark.gpu(2)
def test_two_processes_with_nccl_end_with_the_same_weights(corpus, tmp_path):
    check_resumed(corpus, tmp_path, 2)
