"""Run a cell through run.sh: one process, pretraining to results on shared data."""

import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.experiments.cells import Cell, Data, place
from espnet2_lamer.experiments.matrix import Store
from espnet2_lamer.experiments.measures import CellMeasure, read_measures
from espnet2_lamer.fileio.atomic import write_text
from espnet2_lamer.recipe.stages import ssl1

#: Name of every cell's pretraining in its own directory.
TAG = "lamer"


def prepare_data(
    data: Data,
    store: Store,
    recipe: Path,
    lock: int,
    speed: Mapping[str, int] | None = None,
) -> Sequence[CellMeasure]:
    """Run the stages whose results all cells share.

    The process keeps ``lock``, a descriptor; options in ``speed`` change no result.
    """
    directory = store.data(data.key)
    last = max(stage.number for stage in ssl1 if stage.shared)
    own = [stage.number for stage in ssl1 if not stage.shared and stage.number < last]
    options = {
        **place(data.options, store.experiment),
        "stage": 0,
        "stop_stage": last,
        "skip_stages": own,
        "control": "false",
        "datadir": directory / "data",
    }
    _run_sh(recipe, options, directory, lock, speed)
    return ()


def run_cell(
    cell: Cell,
    store: Store,
    recipe: Path,
    lock: int,
    speed: Mapping[str, int] | None = None,
) -> Sequence[CellMeasure]:
    """Run the stages of a cell, from pretraining to results, and read what they found.

    The cell's directory gets config files, links to the shared data, and an experiment
    directory of its own; killed and started again it goes on as the recipe does.
    """
    directory, shared = store.cell(cell.key), store.data(cell.data.key)
    _share(directory, shared)
    first = ssl1["pretraining"].number
    late = [s.number for s in ssl1 if s.shared and s.number > first]
    options: dict[str, Any] = {
        "control": "false",
        "stop_stage": ssl1["results"].number,
        "ssl_tag": TAG,
        "upstreams": TAG,
        **place(cell.options, store.experiment),
        "seed": cell.seed,
        "stage": first,
        "skip_stages": [*str(cell.options.get("skip_stages", "")).split(), *late],
        "datadir": shared / "data",
    }
    for name, content in cell.configs.items():
        path = directory / f"{name}.yaml"
        write_text(path, yaml.safe_dump(place(content, store.experiment)))
        options[name] = path
    _run_sh(recipe, options, directory, lock, speed, cell.environment)
    measures = measure_cell(cell, store)
    _clean(directory)
    return measures


def measure_cell(cell: Cell, store: Store) -> list[CellMeasure]:
    """Read what a finished cell found from the files it left."""
    directory = store.cell(cell.key)
    return read_measures(directory / "exp", directory / "dump" / "raw", cell.seed)


def _run_sh(
    recipe: Path,
    options: Mapping[str, Any],
    directory: Path,
    lock: int,
    speed: Mapping[str, int] | None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run ``run.sh`` into a directory; its output goes to the end of ``log.txt``."""
    where = {"dumpdir": directory / "dump", "expdir": directory / "exp"}
    everything = {**options, **where, **(speed or {})}
    command = ["./run.sh", "--python", sys.executable]
    for name, value in everything.items():
        if isinstance(value, bool):
            value = str(value).lower()
        if isinstance(value, list | tuple):
            value = " ".join(map(str, value))
        command += [f"--{name}", str(value)]
    log = directory / "log.txt"
    with open(log, "a", encoding="utf-8") as handle:
        set_first = [f"{name}={value}" for name, value in (environment or {}).items()]
        handle.write(f"# {shlex.join([*set_first, *command])}\n")
        handle.flush()
        process = subprocess.Popen(
            command,
            cwd=recipe,
            stdout=handle,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            pass_fds=(lock,),
        )
        try:
            code = process.wait()
        except BaseException:
            # Asked to stop: the recipe saves a checkpoint and ends.
            process.terminate()
            process.wait()
            raise
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in lines[-40:] if "ERROR" in line] or lines
        raise RecipeError(f"run.sh ended with code {code}: {' | '.join(said[-5:])}")


def _share(directory: Path, shared: Path) -> None:
    """Put what all cells share where the cell's stages look for it."""
    exp = directory / "exp"
    exp.mkdir(parents=True, exist_ok=True)
    (directory / "dump").mkdir(exist_ok=True)
    for name in ("dump/raw", "dump/units", "exp/random"):
        link = directory / name
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(shared / name, link.parent))
    shutil.copyfile(shared / "exp" / "checkpoints.json", exp / "checkpoints.json")
    # Training writes language numbers beside them.
    if not (exp / "ssl_stats").exists():
        shutil.copytree(shared / "exp" / "ssl_stats", exp / "ssl_stats.tmp")
        os.replace(exp / "ssl_stats.tmp", exp / "ssl_stats")


def _clean(directory: Path) -> None:
    """Remove what only resuming needs: stored features, optimizers, heads' weights."""
    shutil.rmtree(directory / "dump" / "feature_store", ignore_errors=True)
    exp = directory / "exp"
    doomed = [*exp.glob("*/checkpoint*.pth"), *exp.glob("ssl_*/checkpoint*.json")]
    for record in exp.glob("*/run.json"):
        doomed += record.parent.rglob("*.pth")
    for path in doomed:
        path.unlink(missing_ok=True)
    logging.debug("%s: removed %d files", directory, len(doomed))
