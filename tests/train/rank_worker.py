"""Trainings by update_bins on 1, 2 and 4 real ranks; prints JSON for test_real_ranks.

Usage: rank_worker.py DIRECTORY
"""

import copy
import json
import os
import signal
import sys
import time
from pathlib import Path

import small_training as small
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from espnet2_lamer.train.update import Updater  # noqa: E402

ENCODER = copy.deepcopy(small.CONFIG["encoder_conf"]) | {
    # Ranks draw other numbers.
    "encoder_dropout": 0.0,
    "encoder_ff_interm_dropout": 0.0,
    "lamer": {"allocation": "2,4", "rank": 2, "balance": "loss"},
}
UPDATES = {
    "encoder_conf": ENCODER,
    # Updates of 3 s: five utterances or more.
    "update_bins": 48_000,
    "device_bins": 10**6,
    "accum_grad": 1,
    "amp_dtype": "none",
    "max_epoch": 2,
    "monitor_utts": 0,
    "log_interval": 1000,
    "checkpoint_interval": 1,
}
UNBALANCED = ENCODER | {"lamer": ENCODER["lamer"] | {"balance": "none"}}


class Messages:
    """Counts the exchanges of a rank's Python code from update to update."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> None:
        """Install in a forked process."""
        counts, batches = [0], [0]
        real, add, step = torch.distributed.all_reduce, Updater.add, Updater.step

        def all_reduce(*args, **kwargs):
            counts[0] += 1
            return real(*args, **kwargs)

        def counted_add(*args, **kwargs):
            # Not what validations sent.
            counts[0] *= batches[0] > 0
            batches[0] += 1
            return add(*args, **kwargs)

        def counted_step(updater, *args):
            step(updater, *args)
            with open(self.path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps([batches[0], counts[0]]) + "\n")
            counts[0] = batches[0] = 0

        torch.distributed.all_reduce = all_reduce
        Updater.add, Updater.step = counted_add, counted_step


def killed_at(update: int):
    """End the process itself in the middle of an update."""

    def install() -> None:
        step, seen = Updater.step, []

        def killing_step(updater, *args):
            seen.append(None)
            if len(seen) == update:
                os.kill(os.getpid(), signal.SIGKILL)
            step(updater, *args)

        Updater.step = killing_step

    return install


def train(directory: Path, name: str, ranks: int, before=None, **changes) -> list[int]:
    """Train in as many processes; their exit codes."""
    output = directory / name
    options = small.command(directory / "corpus", output, **(UPDATES | changes))
    if ranks > 1:
        store = directory / f"{name}.{time.monotonic_ns()}.store"
        options += ["--dist_backend", "gloo", "--dist_world_size", str(ranks)]
        options += ["--dist_init_method", f"file://{store}", "--ngpu", "0"]
        options += ["--multiprocessing_distributed", "false"]
    places = (
        [["--dist_rank", str(rank)] for rank in range(ranks)] if ranks > 1 else [[]]
    )
    pids = [
        small.start([*options, *place], directory / f"{name}.{n}.log", before)
        for n, place in enumerate(places)
    ]
    return [small.wait(pid) for pid in pids]


def main() -> None:
    directory = Path(sys.argv[1])
    small.make_corpus(directory / "corpus")
    messages = Messages(directory / "messages")
    # No rank is left without an utterance, which would count as a masked frame.
    small_parts = {"device_bins": 16_000}
    codes = {
        "one": train(directory, "one", 1),
        "two": train(directory, "two", 2),
        "two, cached": train(directory, "two_c", 2, feature_cache_gb=1.0),
        "four": train(directory, "four", 4),
        "one, unbalanced": train(directory, "one_u", 1, encoder_conf=UNBALANCED),
        "two in parts": train(
            directory, "two_p", 2, messages, encoder_conf=UNBALANCED, **small_parts
        ),
        "killed": train(directory, "killed", 2, killed_at(2)),
        "goes on alone": train(directory, "killed", 1, allow_changed=True),
    }
    found = {
        name: small.outcome(directory / name)["figures"]
        for name in ("one", "two", "two_c", "four", "one_u", "two_p", "killed")
    }
    print(
        json.dumps(
            {
                "codes": codes,
                "figures": found,
                "messages": [
                    json.loads(line) for line in messages.path.read_text().splitlines()
                ],
                "log": (directory / "killed.0.log").read_text(),
                "cached": (directory / "two_c.0.log").read_text(),
                "tail": [p.read_text()[-1500:] for p in directory.glob("*.log")],
            }
        )
    )


if __name__ == "__main__":
    main()
