"""Where pretraining runs: ESPnet's options for GPUs, nodes and Slurm."""

import os
from pathlib import Path

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe.options import Options

# What tells one start of a training from another on the same nodes.
_START = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")


def device_options(options: Options, experiment: Path) -> list[str]:
    """Name devices and processes of a training to ESPnet.

    One process per GPU; on several nodes one recipe per node, started by ``srun``,
    whose processes find each other through a file in the shared ``expdir``.

    Args:
        options: ``ngpu`` (per node) and ``num_nodes``.
        experiment: The training's; each has its own file.

    Raises:
        RecipeError: Several nodes are asked for, and Slurm did not start this on them.
    """
    command = ["--ngpu", str(options.ngpu)]
    if options.ngpu == 0:
        command += ["--dist_backend", "gloo"]
    if options.ngpu > 1 or options.num_nodes > 1:
        command += ["--multiprocessing_distributed", "true"]
    if options.num_nodes > 1:
        _check_step(options)
        command += [
            *("--dist_world_size", str(options.num_nodes)),
            *("--dist_launcher", "slurm"),
            *("--dist_init_method", f"file://{_meeting_place(experiment)}"),
        ]
    return command


def _check_step(options: Options) -> None:
    nodes, tasks = (
        os.environ.get(name, "none")
        for name in ("SLURM_STEP_NUM_NODES", "SLURM_NTASKS")
    )
    if {nodes, tasks} != {str(options.num_nodes)}:
        raise RecipeError(
            f"--num_nodes: found {options.num_nodes}, but Slurm started {tasks} tasks "
            f"on {nodes} nodes; start one per node: srun --nodes={options.num_nodes} "
            f"--ntasks-per-node=1 ./run.sh --num_nodes {options.num_nodes} ..., or set "
            "train_cmd in cmd.sh"
        )


def _meeting_place(experiment: Path) -> Path:
    """A file that no earlier start has left behind: torch would wait for its ranks."""
    start = ".".join(os.environ.get(name, "0") for name in _START)
    directory = experiment.resolve().parent / "dist"
    directory.mkdir(parents=True, exist_ok=True)
    return directory / f"{experiment.name}.{start}"
