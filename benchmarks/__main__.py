"""Measure, print tables, and write them to RESULTS.md.

python -m benchmarks                       everything, many minutes
python -m benchmarks --only layer,loss     some sections
python -m benchmarks --quick               toy sizes, seconds; prints only
"""

import argparse
import importlib
import logging
import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.machine import describe
from benchmarks.options import add_options, chosen
from benchmarks.report import Section, update
from espnet2_lamer.bin.common import run_main
from espnet2_lamer.errors import RecipeError, require
from espnet2_lamer.units.teacher import check_device

# A section is a module with TITLE, DEVICES, Options, QUICK and run(options, device).
SECTIONS = (
    *("layer", "step", "loss", "stock", "overhead", "padding", "sharing", "heads"),
    *("kmeans", "labels", "units", "scale", "counts", "peers", "update", "whisper"),
    "segment",
)
RESULTS = Path(__file__).with_name("RESULTS.md")


def _sections(text: str) -> list[str]:
    names = text.split(",")
    unknown = sorted(set(names) - set(SECTIONS))
    if unknown:
        raise argparse.ArgumentTypeError(
            f"unknown sections {unknown}, expected some of {list(SECTIONS)}"
        )
    return names


def get_parser() -> argparse.ArgumentParser:
    """Return the command line's parser, with the options of every section."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        type=_sections,
        default=list(SECTIONS),
        metavar="X,Y",
        help=f"sections to measure, some of {','.join(SECTIONS)} (default: all)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="toy sizes, to see that all of it runs"
    )
    parser.add_argument(
        "--device",
        choices=["all", "cpu", "cuda"],
        default="all",
        help="where to measure (default: the CPU, and the GPU if there is one)",
    )
    parser.add_argument(
        "--threads", type=int, help="torch's threads (default: torch's own choice)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="file whose sections are replaced (default: benchmarks/RESULTS.md, none "
        "with --quick)",
    )
    for name in SECTIONS:
        module = importlib.import_module(f"benchmarks.{name}")
        add_options(parser, name, module.TITLE, module.Options)
    return parser


def _plan(names: list[str], wanted: str) -> list[tuple[str, str]]:
    """Sections and where each is measured; what is left out is said.

    Raises:
        RecipeError: There is no such device, a section that was asked for lacks a
            package, or nothing would be measured.
    """
    if wanted != "all":
        check_device(wanted)
    found = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    plan, left_out = [], []
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        lacking = [p for p in getattr(module, "PACKAGES", ()) if find_spec(p) is None]
        if lacking and names == list(SECTIONS):
            logging.warning(
                "%s is left out: %s is not installed: pip install "
                "'espnet2-lamer[bench]'",
                name,
                ", ".join(lacking),
            )
            continue
        for package in lacking:
            require(package, f"section {name}")
        places = [d for d in module.DEVICES if d in found and wanted in ("all", d)]
        plan += [(name, device) for device in places]
        left_out += [] if places else [name]
    if not plan:
        raise RecipeError(
            f"--device {wanted}: nothing would be measured: {', '.join(left_out)} "
            "have no measurement there; see --only and --device"
        )
    if left_out:
        logging.warning(
            "--device %s leaves out %s, which have no measurement there",
            wanted,
            ", ".join(left_out),
        )
    return plan


def _command(cmd: list[str]) -> str:
    """The command line for the report, without where the report is."""
    kept = []
    for number, word in enumerate(cmd):
        after = number and cmd[number - 1] == "--output"
        if not (after or word == "--output" or word.startswith("--output=")):
            kept.append(word)
    return shlex.join(["python", "-m", "benchmarks", *kept])


def main(cmd: list[str] | None = None) -> None:
    """Run the chosen sections; print each and write it as soon as it is done.

    Raises:
        RecipeError: There is no such device, or nothing would be measured.
    """
    cmd = sys.argv[1:] if cmd is None else cmd
    args = get_parser().parse_args(cmd)
    if args.threads:
        torch.set_num_threads(args.threads)
        # For the processes that some sections start.
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
    output = args.output or (None if args.quick else RESULTS)
    for name, device in _plan(args.only, args.device):
        module = importlib.import_module(f"benchmarks.{name}")
        base = module.QUICK if args.quick else module.Options()
        options = chosen(args, name, base)
        logging.info("measuring %s on %s: %s", name, device, options)
        facts = {"command": f"`{_command(cmd)}`"} | describe(device)
        section = Section(
            name if device == "cpu" else f"{name}-gpu",
            module.TITLE,
            facts,
            module.run(options, device),
        )
        print(f"\n{section}\n", flush=True)
        if output:
            update(output, section)


if __name__ == "__main__":
    run_main(main)
