"""Measure on a GPU what there is to measure, and write one page: ``make bench-gpu``.

python -m benchmarks.gpu                       ten minutes; benchmarks/GPU.md
python -m benchmarks.gpu --output page.md      elsewhere

The page has the card's name, and the sections of ``python -m benchmarks`` that a GPU
changes, each from a process of its own. What does not end in time, or fails, is said on
the page, and the exit code is 1.
"""

import argparse
import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.machine import ROOT, describe
from benchmarks.report import HEADING
from espnet2_lamer.bin.common import run_main
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_text

PAGE = Path(__file__).with_name("GPU.md")
MINUTES = 10.0


@dataclass(frozen=True)
class Run:
    """One section, its options, and the share of the time that it may take."""

    section: str
    arguments: tuple[str, ...]
    share: float


# Sizes of a few minutes on an H100. The shares are upper bounds of what is then left.
RUNS = (
    Run("step", ("--device", "cuda"), 0.4),
    Run("counts", ("--device", "cpu"), 0.3),
    Run(
        "peers",
        tuple("--device cuda --peers_layers 24 --peers_deep 0 --peers_batch 8".split())
        + ("--peers_seconds", "10"),
        0.5,
    ),
    Run("kmeans", ("--device", "cuda", "--kmeans_frames", "3000000"), 0.6),
    Run("labels", ("--device", "cuda"), 1.0),
)


def measure(run: Run, output: Path, seconds: float) -> str:
    """Run one section in a process of its own; it writes itself into ``output``.

    Returns:
        ``""``, or why the section is not there.
    """
    command = [sys.executable, "-m", "benchmarks", "--only", run.section]
    command += [*run.arguments, "--output", str(output)]
    environment = dict(os.environ)
    if "cpu" in run.arguments:
        # What is counted there does not depend on the card.
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s, which it may take"
        finally:
            # With what it has started; they may outlive it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if not code:
            return ""
        said.seek(0)
        lines = said.read().strip().splitlines()
    return f"exit code {code}: {lines[-1] if lines else 'no word'}"


def page(facts: dict[str, str], sections: str, failed: dict[str, str]) -> str:
    """Format the page: the card, what is missing, and the sections as they are."""
    lines = [f"# {facts['measured on']}", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    lines += [f"- not measured: {name} ({why})" for name, why in failed.items()]
    begin = HEADING.search(sections)
    body = sections[begin.start() :].strip() if begin else ""
    return "\n".join([*lines, "", body]).strip() + "\n"


def measure_all(
    output: Path, minutes: float, runs: Sequence[Run] = RUNS
) -> dict[str, str]:
    """Measure every section and write the page; returns what failed, and why."""
    failed: dict[str, str] = {}
    facts = describe("cuda")
    ends = time.monotonic() + 60.0 * minutes
    with tempfile.TemporaryDirectory() as name:
        sections = Path(name) / "sections.md"
        for run in runs:
            left = ends - time.monotonic()
            logging.info(
                "%s: at most %.0f s of %.0f", run.section, run.share * left, left
            )
            if reason := measure(run, sections, max(run.share * left, 1.0)):
                failed[run.section] = reason
                logging.warning("%s: %s", run.section, reason)
            text = sections.read_text(encoding="utf-8") if sections.exists() else ""
            # After each, so that what was measured stays if the machine goes.
            write_text(output, page(facts, text, failed))
    return failed


def get_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=PAGE, help="the page (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="in all (default: %(default)s)"
    )
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Measure, and write the page.

    Raises:
        RecipeError: There is no GPU, or a section could not be measured.
    """
    args = get_parser().parse_args(cmd)
    if not torch.cuda.is_available():
        raise RecipeError(
            "make bench-gpu: torch finds no GPU; run it where there is one, with a "
            "torch that fits the driver, or `make bench` for the CPU"
        )
    failed = measure_all(args.output, args.minutes)
    logging.info("%s: written for %s", args.output, torch.cuda.get_device_name())
    if failed:
        reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
        raise RecipeError(f"{args.output}: not measured: {reasons}")


if __name__ == "__main__":
    run_main(main)
