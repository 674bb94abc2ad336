"""Section ``update``: an update of the mini preset, this checkout against another."""

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.harness import Timings
from benchmarks.machine import ROOT
from benchmarks.options import option
from benchmarks.report import Table, verdict
from espnet2_lamer.errors import RecipeError

TITLE = "an update of the mini preset, old against new"
DEVICES = ("cpu",)
THIS, OTHER = "this checkout", "the other"
CACHED = "this checkout, with feature cache"
WORKER = Path(__file__).with_name("update_worker.py")
# So many times as fast as the commit before.
SPEED_UP = 1.3


@dataclass(frozen=True)
class Options:
    """What is updated, and with what it is compared."""

    against: str = option(
        "", "another checkout's folder, or a revision such as HEAD^; empty: none"
    )
    config: str = option("conf/train_ssl_lamer_mini.yaml", "each checkout's own config")
    base: str = option(
        "egs2/lamer_ssl/ssl1/mini/base",
        "each checkout's own base; none: random weights",
    )
    amp_dtype: str = option("", "none, bf16 or fp16; empty: the config's")
    units: int = option(100, "classes K")
    seconds: float = option(20.0, "seconds of audio per update")
    updates: int = option(6, "updates of a timed run: long, middling, short in turns")
    rounds: int = option(7, "timed rounds")


QUICK = Options(units=5, seconds=1.0, updates=3, rounds=1)


class Checkout:
    """A process that makes updates with the package of one folder.

    Raises:
        RecipeError: The process ends, or takes the package from another place.
    """

    def __init__(self, folder: Path, options: Options, cached: bool = False) -> None:
        self.folder = folder
        threads = str(torch.get_num_threads())
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        environment |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        # A file, since nobody reads a pipe while updates are made.
        self._said = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            # -P: modules of this folder must not hide others of the same name.
            [sys.executable, "-P", str(WORKER)],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        base = "" if options.base in ("", "none") else str(folder / options.base)
        self._say(
            json.dumps(
                {
                    "config": str(folder / options.config),
                    "base": base,
                    "units": options.units,
                    "amp_dtype": options.amp_dtype,
                    "seconds": options.seconds,
                    "feature_cache": cached,
                }
            )
        )

    def hello(self) -> dict[str, Any]:
        """Wait until it is ready; returns its precision and its first loss."""
        found = self._answer()
        expected = str((self.folder / "espnet2_lamer").resolve())
        if found["package"] != expected:
            self.close()
            raise RecipeError(
                f"{self.folder}: its process imported {found['package']}, expected "
                f"{expected}; is it a checkout of this project?"
            )
        return found

    def run(self, updates: int) -> dict[str, float]:
        """Make updates; returns ``seconds`` and ``cpu``."""
        self._say(str(updates))
        return self._answer()

    def _say(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(line, file=self.process.stdin, flush=True)

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self._said.seek(0)
            said = self._said.read().strip().splitlines()
            raise RecipeError(
                f"{self.folder}: its process ended: {said[-1] if said else 'no word'}"
            )
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self._said.close()


@contextlib.contextmanager
def checkout(name: str) -> Iterator[Path]:
    """Give the folder of another checkout; a revision is laid out for as long.

    Raises:
        RecipeError: It is neither a folder nor a revision.
    """
    if Path(name).is_dir():
        yield Path(name).resolve()
        return
    packed = subprocess.run(
        ["git", "archive", "--format=tar", name], cwd=ROOT, capture_output=True
    )
    if packed.returncode:
        reason = packed.stderr.decode(errors="replace").strip()
        raise RecipeError(
            f"--update_against {name}: neither a folder nor a revision of {ROOT} "
            f"({reason})"
        )
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder).resolve()


def measure(folders: dict[str, Path], options: Options) -> tuple[Timings, dict]:
    """Time every checkout once per round, by turns; returns also what they said."""
    timings = Timings({n: [] for n in folders}, {n: [] for n in folders})
    with contextlib.ExitStack() as stack:
        workers = {}
        for name, folder in folders.items():
            workers[name] = Checkout(folder, options, name == CACHED)
            stack.callback(workers[name].close)
        said = {name: worker.hello() for name, worker in workers.items()}
        for number in tqdm(
            range(options.rounds), desc="update", leave=False, disable=None
        ):
            # Neither is always the first.
            for name in sorted(workers, reverse=bool(number % 2)):
                found = workers[name].run(options.updates)
                timings.seconds[name].append(found["seconds"] / options.updates)
                timings.cpu[name].append(found["cpu"] / options.updates)
    return timings, said


def run(options: Options, device: str) -> list[str | Table]:
    """Measure this checkout and, where there is one, the other."""
    with contextlib.ExitStack() as stack:
        folders = {THIS: ROOT, CACHED: ROOT}
        if options.against:
            folders[OTHER] = stack.enter_context(checkout(options.against))
        timings, said = measure(folders, options)
    header = ["checkout", "precision", "loss before", "ms per update"]
    header += ["CPU ms per update", "speed-up", "CPU speed-up", "target"]
    title = f"`{options.config}`, {options.seconds:g} s of audio per update"
    table = Table(title, header)
    reference = OTHER if options.against else THIS
    for name in folders:
        ratio = timings.of_cpu().ratio(reference, name)
        judged = options.against and name == THIS
        table.rows.append(
            [
                name + (f" ({options.against})" if name == OTHER else ""),
                said[name]["amp_dtype"],
                f"{said[name]['loss']:.4f}",
                f"{1e3 * timings.median(name):.0f}",
                f"{1e3 * timings.of_cpu().median(name):.0f}",
                str(timings.ratio(reference, name)),
                str(ratio),
                verdict(ratio.median, ">=", SPEED_UP) if judged else "",
            ]
        )
    explanation = (
        "Each checkout runs in a process of its own, with its own config, base, model, "
        "collate function and optimizer; they make their updates in turns (forward, "
        f"backward, clipping, AdamW on noise; {options.updates} updates a run, "
        f"{options.rounds} rounds). The speed-up is the other's time over this one's, "
        "within a round; the target goes by CPU seconds. With the feature cache the "
        "output of the frozen convolution stack is at hand, as with "
        "`feature_cache_gb`, whose one pass through it before the first update is not "
        "timed. Batches are ready in every row: neither reading audio nor reading "
        "features is timed."
    )
    return [explanation, table]
