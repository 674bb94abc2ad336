"""Trainings that are killed, starved and fed with rubbish; prints JSON for the tests.

Usage: fault_worker.py DIRECTORY SCENARIO...
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import small_training as small
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
import espnet2_lamer.train.checkpoint as checkpoint_module
from espnet2_lamer.train.batching import LamerCollate
from tests.full_disk import full  # noqa: E402


class Stage:
    """A directory with the corpus and the uninterrupted training."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.corpus = directory / "corpus"
        small.make_corpus(self.corpus)
        started = time.monotonic()
        self.reference, code = self.train("reference")
        assert code == 0, self.log("reference")
        self.seconds = time.monotonic() - started
        self.outcome = small.outcome(self.reference)

    def train(self, name, before=None, corpus=None, **changes):
        output = self.directory / name
        options = small.command(corpus or self.corpus, output, **changes)
        code = small.wait(small.start(options, self.log_path(name), before))
        return output, code

    def train_ranks(self, name, **changes):
        """Start both ranks of a distributed training; ids of the processes."""
        output = self.directory / name
        store = self.directory / f"{name}.{time.monotonic_ns()}.store"
        options = small.command(self.corpus, output, **changes)
        options += ["--dist_backend", "gloo", "--dist_world_size", "2"]
        options += ["--dist_init_method", f"file://{store}", "--ngpu", "0"]
        options += ["--multiprocessing_distributed", "false"]
        log = self.log_path(name)
        return [
            small.start(
                [*options, "--dist_rank", str(rank)], log.with_suffix(f".{rank}")
            )
            for rank in (0, 1)
        ]

    def log_path(self, name):
        return self.directory / f"{name}.log"

    def log(self, name):
        return self.log_path(name).read_text()

    def compare(self, output):
        return small.differences(self.outcome, small.outcome(output))[:5]


def kills(stage, times):
    """SIGKILL at random moments, then a plain run."""
    seed = time.time_ns()
    rng = random.Random(seed)
    output = stage.directory / f"kills{times}"
    options = small.command(stage.corpus, output)
    log = stage.log_path(output.name)
    codes = []
    for _ in range(times):
        pid = small.start(options, log)
        codes.append(small.kill_after(pid, rng.uniform(0.2, 0.7) * stage.seconds))
    codes.append(small.wait(small.start(options, log)))
    return {
        "seed": seed,
        "codes": codes,
        "resumed": stage.log(output.name).count("resumed after update"),
        "differences": stage.compare(output),
    }


def dies_while_saving(after):
    """Kill the process itself in the middle of writing checkpoint number ``after``."""
    real = torch.save
    saves = []

    def save(state, stream):
        # Not models of whole epochs.
        saves.extend([None] * ("optimizers" in state))
        if len(saves) < after:
            return real(state, stream)
        stream.write(b"PK half of a checkpoint")
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    def install():
        checkpoint_module.torch.save = save

    return install


def kill_while_saving(stage):
    output, code = stage.train("saving", dies_while_saving(3))
    left = [p.name for p in (output / "checkpoints").glob(".update*")]
    _, last = stage.train("saving")
    return {
        "codes": [code, last],
        "left": left,
        "left_after": [p.name for p in (output / "checkpoints").glob(".*")],
        "differences": stage.compare(output),
    }


# To one process; or, as Slurm and terminals do, to those that load audio, too.
PREEMPTED = (
    (signal.SIGTERM, os.kill, 0),
    (signal.SIGUSR1, os.killpg, 1),
    (signal.SIGINT, os.killpg, 1),
)
PREEMPTED_OTHERWISE = (
    (signal.SIGTERM, os.killpg, 1),
    (signal.SIGUSR1, os.kill, 0),
    (signal.SIGINT, os.kill, 0),
)


def preempted(stage, ways):
    found = {}
    for number, send, workers in ways:
        output = stage.directory / f"signal{number}{workers}"
        changes = {"checkpoint_interval": 1000, "num_workers": workers}
        options = small.command(stage.corpus, output, **changes)
        log = stage.log_path(output.name)
        pid = small.start(options, log)
        while not log.exists() or "1/3epoch started" not in log.read_text():
            time.sleep(0.01)
        # Until its loader has started.
        time.sleep(0.1 + 0.2 * workers)
        send(pid, number)
        code = small.wait(pid)
        last = small.wait(small.start(options, log))
        found[number.name + " to all" * workers] = {
            "codes": [code, last],
            "message": "the checkpoint is written" in log.read_text(),
            "resumed": "resumed after update" in log.read_text(),
            "traceback": "Traceback" in log.read_text(),
            "differences": stage.compare(output),
        }
    return found


def corrupted(stage):
    output, code = stage.train("corrupted", dies_while_saving(5))
    latest = max((output / "checkpoints").glob("update_*.pth"))
    content = bytearray(latest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    latest.write_bytes(content)
    _, last = stage.train("corrupted")
    log = stage.log("corrupted")
    return {
        "codes": [code, last],
        "named": f"{latest}: damaged or not finished (its checksum differs)" in log,
        "differences": stage.compare(output),
    }


def disk_full(stage):
    real = torch.save
    saves = []

    def save(state, stream):
        saves.extend([None] * ("optimizers" in state))
        if len(saves) != 3:
            return real(state, stream)
        with full("small files", None, 2**14):
            return real(state, stream)

    def install():
        checkpoint_module.torch.save = save

    output, code = stage.train("full", install)
    names = sorted(p.name for p in (output / "checkpoints").iterdir())
    _, last = stage.train("full")
    return {
        "codes": [code, last],
        "message": [
            x for x in stage.log("full").splitlines() if "cannot be written: " in x
        ][-1],
        "files": names,
        "differences": stage.compare(output),
    }


def changed(stage):
    """Resume under another learning rate, with other units."""
    found = {}
    output, code = stage.train("changed", dies_while_saving(3))
    _, refused = stage.train("changed", optim_conf={"lr": 0.02})
    found["lr"] = [code, refused, stage.log("changed").splitlines()[-1]]
    units = stage.corpus / "text.km"
    content = units.read_text()
    units.write_text(content.replace(" 1 ", " 2 ", 1))
    _, refused = stage.train("changed")
    found["units"] = [refused, stage.log("changed").splitlines()[-1]]
    units.write_text(content)
    _, allowed = stage.train("changed", optim_conf={"lr": 0.02}, allow_changed=True)
    found["allowed"] = [
        allowed,
        "resumed under another condition: optim_conf" in stage.log("changed"),
    ]
    return found


def poisoned(numbers):
    """Put NaN into batches, counted over the process."""
    real = LamerCollate.__call__
    calls = []

    def collate(self, batch):
        names, data = real(self, batch)
        if self.train:
            calls.append(None)
            if len(calls) in numbers:
                data["speech"][:] = float("nan")
        return names, data

    def install():
        LamerCollate.__call__ = collate

    return install


def not_a_number(stage):
    output, code = stage.train("nan", poisoned({3}))
    state = small.outcome(output)
    finite = all(
        v.isfinite().all() for v in state["model"].values() if v.is_floating_point()
    )
    figures = state["figures"]
    _, stopped = stage.train("nans", poisoned(range(3, 1000)), max_bad_updates=3)
    return {
        "codes": [code, stopped],
        "finite": finite,
        "bad": figures["1.train.bad_update"],
        "skipped": stage.log("nan").count("update skipped"),
        "message": [x for x in stage.log("nans").splitlines() if "in a row had" in x][
            -1
        ],
        "checkpoints": len(list((stage.directory / "nans/checkpoints").glob("*.pth"))),
    }


def broken_data(stage):
    found = {}
    corpus = stage.directory / "broken"
    small.make_corpus(corpus)
    (corpus / "utt07.wav").write_bytes(b"RIFF and nothing that follows")
    for workers in (0, 1):
        name = f"audio{workers}"
        _, code = stage.train(name, corpus=corpus, num_workers=workers)
        lines = [x for x in stage.log(name).splitlines() if "utterance utt07" in x]
        found[name] = [code, lines[-1] if lines else ""]
    small_lines = (stage.corpus / "text.km").read_text().splitlines()
    soundfile.write(corpus / "utt07.wav", np.zeros(6000), 16000)
    (corpus / "text.km").write_text(
        "\n".join(x for x in small_lines if not x.startswith("utt11")) + "\n"
    )
    _, code = stage.train("line", corpus=corpus)
    lines = [x for x in stage.log("line").splitlines() if "utt11" in x]
    found["line"] = [code, lines[-1] if lines else ""]
    return found


def worker_killed(stage):
    real = LamerCollate.__call__
    parent = []

    def collate(self, batch):
        if os.getpid() != parent[0] and self.train and self.epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, batch)

    def install():
        parent.append(os.getpid())
        LamerCollate.__call__ = collate

    output, code = stage.train("worker", install, num_workers=1)
    message = [
        x for x in stage.log("worker").splitlines() if "that loads audio died" in x
    ]
    _, last = stage.train("worker", num_workers=1)
    return {
        "codes": [code, last],
        "message": message[-1] if message else stage.log("worker")[-500:],
        "differences": stage.compare(output),
    }


def distributed(stage, times):
    """Two ranks: killed at random moments, and one of them alone."""
    changes = {"batch_bins": 24000}
    started = time.monotonic()
    codes = [small.wait(pid) for pid in stage.train_ranks("ranks", **changes)]
    seconds = time.monotonic() - started
    reference = small.outcome(stage.directory / "ranks")
    seed = time.time_ns()
    rng = random.Random(seed)
    killed = []
    for _ in range(times):
        pids = stage.train_ranks("ranks_killed", **changes)
        time.sleep(rng.uniform(0.3, 0.8) * seconds)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        killed.append([small.wait(pid) for pid in pids])
    last = [small.wait(pid) for pid in stage.train_ranks("ranks_killed", **changes)]
    resumed = stage.log_path("ranks_killed").with_suffix(".0").read_text()
    found = {
        "seed": seed,
        "codes": [codes, last],
        "killed": killed,
        "resumed": resumed.count("resumed after update"),
        "differences": small.differences(
            reference, small.outcome(stage.directory / "ranks_killed")
        )[:5],
        "figures": [
            reference["figures"]["3.train.loss_m"],
            stage.outcome["figures"]["3.train.loss_m"],
        ],
    }
    first, second = stage.train_ranks("ranks_one", **changes)
    time.sleep(0.5 * seconds)
    os.kill(second, signal.SIGKILL)
    started = time.monotonic()
    found["survivor"] = small.wait(first)
    found["survived_seconds"] = time.monotonic() - started
    small.wait(second)
    log = stage.log_path("ranks_one").with_suffix(".0").read_text()
    found["traceback"] = "Traceback" in log
    pids = stage.train_ranks("ranks_signal", checkpoint_interval=1000)
    time.sleep(0.5 * seconds)
    # Slurm signals one process; all ranks have to agree.
    os.kill(pids[1], signal.SIGUSR1)
    found["signal"] = [small.wait(pid) for pid in pids]
    last = [small.wait(pid) for pid in stage.train_ranks("ranks_signal")]
    found["signal_differences"] = small.differences(
        reference, small.outcome(stage.directory / "ranks_signal")
    )[:5]
    return found


def unmonitored(stage):
    """The same training without the forgetting monitor."""
    output, code = stage.train("unmonitored", monitor_utts=0)
    found = small.outcome(output)
    trained = ("model", "best", "optimizer", "updates")
    return {
        "code": code,
        "differences": small.differences(
            {key: stage.outcome[key] for key in trained},
            {key: found[key] for key in trained},
        ),
        "lines": [len(x["forgetting"]) for x in (stage.outcome, found)],
        "figures": sorted(stage.outcome["figures"].keys() - found["figures"].keys()),
    }


SCENARIOS = {
    "two kills": lambda stage: kills(stage, 2),
    "ten kills": lambda stage: kills(stage, 10),
    "kill while saving": kill_while_saving,
    "preempted": lambda stage: preempted(stage, PREEMPTED),
    "preempted otherwise": lambda stage: preempted(stage, PREEMPTED_OTHERWISE),
    "unmonitored": unmonitored,
    "corrupted": corrupted,
    "disk full": disk_full,
    "changed": changed,
    "not a number": not_a_number,
    "broken data": broken_data,
    "worker killed": worker_killed,
    "two ranks": lambda stage: distributed(stage, 1),
    "two ranks, ten kills": lambda stage: distributed(stage, 10),
}


def main() -> None:
    stage = Stage(Path(sys.argv[1]))
    report = {"reference": {"updates": stage.outcome["updates"]}}
    for name in sys.argv[2:]:
        report[name] = SCENARIOS[name](stage)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
