"""Run a matrix of trainings (systems x seeds) and write its tables.

    cd egs2/lamer_ssl/ssl1
    python -m espnet2_lamer.bin.experiment conf/experiments/replay.yaml

Run again, it goes on with what is missing: a cell whose record is there is never run
twice, in whatever definition it occurs. Several processes may work on one --expdir; on
one machine they share its cores best with --nj 1, as many of them as there are cores.
"""

import argparse
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from espnet2_lamer.bin.common import Parser, run_main
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.machine import describe_machine
from espnet2_lamer.fileio.trust import OPTION


def get_parser() -> Parser:
    """Return the argument parser."""
    parser = Parser(__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("definition", help="YAML file, see conf/experiments")
    add(
        "--expdir",
        default="exp/experiments",
        help="where data, cells and tables go (default: %(default)s)",
    )
    add("--recipe", default=".", help="directory of run.sh (default: this one)")
    add(
        "--cells",
        default="*",
        metavar="PATTERN",
        help="only cells whose SYSTEM/SEED matches, e.g. 'lamer/0' or '*/[0-2]'",
    )
    add(
        "--data",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="option of run.sh that all data depend on, instead of the definition's, "
        "e.g. manifest=FILE; may be repeated",
    )
    add(
        "--nj",
        type=int,
        metavar="N",
        help="cores of one cell: --nj of run.sh, and threads of steps that are one "
        "process (default: 2, and threads as the libraries choose)",
    )
    add(
        "--time_budget",
        type=float,
        metavar="MIN",
        help="start no cell that would end later than this many minutes from now",
    )
    add(
        "--records",
        action="append",
        default=[],
        metavar="FILE",
        help="a records.jsonl, as beside the tables of another --expdir: its cells "
        "count as done here (copied, by --plan too); may be repeated",
    )
    parser.share(OPTION)
    mode = parser.add_mutually_exclusive_group().add_argument
    mode("--plan", action="store_true", help="say what would run, and stop")
    mode("--tables", action="store_true", help="run nothing, write the tables anew")
    mode(
        "--from_csv",
        metavar="FILE",
        help="run nothing, write the page and the picture of a results.csv beside it; "
        "its cells may be gone",
    )
    mode(
        "--remeasure",
        action="store_true",
        help="run nothing, read the figures of finished cells from their files anew, "
        "as after an update that measures more, and write the tables",
    )
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    parser = get_parser()
    args = parser.parse_args(cmd)
    if args.from_csv:
        for name, value in vars(args).items():
            ours = name in ("definition", "from_csv")
            if not ours and value != parser.get_default(name):
                parser.error(
                    f"argument --{name}: not allowed with --from_csv, which "
                    "reads that file alone"
                )
    from espnet2_lamer.experiments.cells import plan_cells
    from espnet2_lamer.experiments.definition import read_definition
    from espnet2_lamer.experiments.launch import measure_cell, prepare_data, run_cell
    from espnet2_lamer.experiments.matrix import Matrix, Store
    from espnet2_lamer.experiments.records import take_records
    from espnet2_lamer.experiments.tables import Tables

    if args.from_csv:
        definition = read_definition(args.definition)
        _write_page(Tables.of_csv(definition, args.from_csv), Path(args.from_csv))
        return
    recipe = Path(args.recipe).absolute()
    if not (recipe / "run.sh").is_file():
        raise RecipeError(
            f"--recipe: {recipe}/run.sh not found; run this in egs2/lamer_ssl/ssl1, or "
            "name that directory"
        )
    definition = read_definition(args.definition, _options(args.data))
    store = Store(args.expdir)
    speed = _cores(args.nj) | {OPTION: args.trust_s3prl_files}
    commit, machine = _commit(recipe), describe_machine()
    matrix = Matrix(
        definition,
        plan_cells(definition, recipe),
        store,
        lambda data, lock: prepare_data(data, store, recipe, lock, speed),
        lambda cell, lock: run_cell(cell, store, recipe, lock, speed),
        {"commit": commit, "machine": machine},
    )
    logging.info("%s: %d cells", definition.name, len(matrix.cells))
    for path in args.records:
        take_records(matrix.cells, store, path)
    for line in matrix.plan(args.cells):
        logging.info("%s", line)
    if args.plan:
        return
    words = [f"{k}={v}" for k, v in os.environ.items() if k.endswith("_NUM_THREADS")]
    header = {
        "command": _command(sys.argv[1:] if cmd is None else cmd),
        "commit": commit,
        "machine": " ".join([machine, *sorted(words)]),
    }
    folder = store.root / definition.name
    write = partial(_write, matrix, header, folder)
    failed = []
    if args.remeasure:
        matrix.remeasure(lambda cell: measure_cell(cell, store))
    elif not args.tables:
        # As on Ctrl-C: the cell's own process saves a checkpoint first.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        failed = matrix.run(args.cells, args.time_budget, write)
    write()
    if failed:
        raise RecipeError(
            f"{len(failed)} cells failed: {'; '.join(c.label for c in failed)}; see "
            f"{folder / 'RESULTS.md'} for their logs"
        )


def _cores(nj: int | None) -> dict[str, int]:
    """Limit the threads of everything started from here; return options of run.sh."""
    if nj is None:
        return {}
    if nj < 1:
        raise RecipeError(f"--nj: found {nj}, expected 1 or more cores")
    for library in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{library}_NUM_THREADS"] = str(nj)
    return {"nj": nj}


def _options(words: list[str]) -> dict[str, str]:
    for word in words:
        if word.find("=") < 1:
            raise RecipeError(f"--data: found {word!r}, expected OPTION=VALUE")
    return dict(word.split("=", 1) for word in words)


def _write(matrix, header: dict[str, str], directory: Path) -> None:
    from espnet2_lamer.experiments.records import pack_records
    from espnet2_lamer.experiments.tables import Tables
    from espnet2_lamer.fileio.atomic import write_text

    now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    tables = Tables.of_cells(matrix, {**header, "written": now})
    write_text(directory / "results.csv", tables.as_csv())
    packed = pack_records(matrix.cells, matrix.store)
    write_text(directory / "records.jsonl", packed)
    _write_page(tables, directory / "results.csv", "RESULTS.md")


def _write_page(tables, csv: Path, name: str | None = None) -> None:
    """Write the page of a CSV, and its picture, beside it."""
    from espnet2_lamer.experiments.page import write_page
    from espnet2_lamer.experiments.plots import plot_differences
    from espnet2_lamer.fileio.atomic import write_text

    page = csv.with_name(name or f"{csv.stem}.md")
    picture = csv.with_name(f"{tables.definition.name}.png")
    drawn = picture.name if plot_differences(tables, picture) else None
    write_text(page, write_page(tables, csv.name, drawn))
    logging.info("tables: %s", page)


def _command(words: list[str]) -> str:
    """What makes the tables from nothing, even if this run only writes them anew."""
    left = iter(words)
    words = []
    for word in left:
        if word == "--records":
            next(left)
        elif word not in ("--tables", "--remeasure") and "--records=" not in word:
            words.append(word)
    return shlex.join(["python", "-m", "espnet2_lamer.bin.experiment", *words])


def _commit(directory: Path) -> str:
    command = ["git", "-C", str(directory), "rev-parse", "HEAD"]
    try:
        return subprocess.check_output(
            command, text=True, stderr=subprocess.DEVNULL
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


if __name__ == "__main__":
    run_main(main)
