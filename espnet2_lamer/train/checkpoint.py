"""Files of a training, whole and hashed: step checkpoints, exact resume, models."""

import argparse
import copy
import datetime
import json
import logging
import os
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.train.reporter import Average, Reporter, SubReporter, WeightedAverage
from espnet2.train.trainer import Trainer, TrainerOptions

from espnet2_lamer.convert.state import read_state
from espnet2_lamer.errors import RecipeError, short_reason
from espnet2_lamer.fileio.atomic import link, rename_old
from espnet2_lamer.fileio.checksum import (
    SUFFIX,
    check_file,
    checked_file,
    problem,
    remove_file,
)
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.fileio.system import system_message
from espnet2_lamer.hubert.statistics import gather

_NAME = re.compile(r"update_(\d{8,})\.pth")
#: Beside the folder of checkpoints: a link to the latest one, ESPnet's name for it.
LATEST = "checkpoint.pth"
# Options that change neither data, model nor updates.
_FREE = set(
    """
    config output_dir resume log_level log_interval print_config dry_run ngpu
    num_workers num_att_plot max_epoch patience keep_nbest_models
    nbest_averaging_interval best_model_criterion early_stopping_criterion
    use_matplotlib use_tensorboard use_wandb create_graph_in_tensorboard version
    required distributed checkpoint_interval allow_changed max_bad_updates
    grad_norm_groups norms_interval local_rank multiprocessing_distributed
    write_collected_feats unused_parameters cudnn_enabled cudnn_benchmark
    train_shape_file valid_shape_file
    valid_data_path_and_name_and_type train_data_path_and_name_and_type
    allow_variable_data_keys token_list max_cache_size max_cache_fd
    valid_max_cache_size sanity sanity_updates replay_langs monitor_utts monitor_layers
    monitor_control feature_cache_gb feature_cache_dir
    """.split()
)
_OF_UPDATES = ("update_bins", "device_bins")
_FREE_PREFIXES = ("dist_", "wandb_")


class CheckpointStore:
    """The latest ``keep`` checkpoints, ``<directory>/update_NNNNNNNN.pth``.

    Beside each stands ``.pth.sha256`` in the format of ``sha256sum``, written last: a
    file without it, or that does not match it, was not finished or is damaged. The link
    ``checkpoint.pth`` beside the directory names the latest.
    """

    def __init__(self, directory: str | Path, keep: int = 2) -> None:
        self.directory = Path(directory)
        self.keep = keep

    def paths(self) -> list[Path]:
        """Checkpoints, the latest first, whole or not.

        One whose file is gone counts as long as its checksum or the link names it.
        """
        if not self.directory.is_dir():
            return []
        latest = self.directory.parent / LATEST
        names = {path.name.removesuffix(SUFFIX) for path in self.directory.iterdir()}
        if latest.is_symlink():
            names.add(Path(os.readlink(latest)).name)
        found = [self.directory / name for name in names if _NAME.fullmatch(name)]
        return sorted(found, key=_number, reverse=True)

    def save(self, state: dict[str, Any], updates: int) -> Path:
        """Write a checkpoint of plain values, then remove those no longer kept.

        Where it cannot be written (``RecipeError``, e.g. disk full) earlier ones stay.
        """
        path = self.directory / f"update_{updates:08d}.pth"
        try:
            self._make_way(path)
            with checked_file(path) as stream:
                torch.save(state, stream)
            link(self.directory.parent / LATEST, f"{self.directory.name}/{path.name}")
        except (OSError, RuntimeError) as error:
            kept = [other for other in self.paths() if problem(other) is None]
            raise RecipeError(
                f"the checkpoint of update {updates} cannot be written: "
                f"{system_message(error) or f'{path}: {error}'}"
                + (f"; {kept[0].name} is whole" if kept else "")
            ) from error
        for old in self.paths()[self.keep :]:
            remove_file(old)
        return path

    def _make_way(self, path: Path) -> None:
        """Remove what training was not resumed from, which it is about to write anew.

        Left where it is, damage would count among the checkpoints that are kept.
        """
        for other in self.paths():
            if _number(other) < _number(path):
                continue
            if other.is_dir() and not other.is_symlink():
                moved = rename_old(other, "not-a-checkpoint")
                logging.warning("%s: moved to %s", other, moved.name)
            if problem(other) is not None or other != path:
                logging.info("%s: removed, training went on before it", other)
                remove_file(other)

    def load(self) -> dict[str, Any] | None:
        """Read the latest whole checkpoint onto the CPU; ``None`` where there is none.

        Raises ``RecipeError`` where all that are there are damaged.
        """
        paths = self.paths()
        for path in paths:
            reason = problem(path)
            if reason is None:
                try:
                    return torch.load(path, map_location="cpu", weights_only=True)
                except Exception as error:
                    reason = short_reason(error)
            logging.warning(
                f"{path}: damaged or not finished ({reason}); using the one before it"
            )
        if paths:
            raise RecipeError(
                f"{self.directory}: all {len(paths)} checkpoints are damaged; remove "
                "the folder to train from the start"
            )
        return None


def _number(path: Path) -> int:
    return int(_NAME.fullmatch(path.name)[1])


def fingerprint(args: argparse.Namespace, world_size: int) -> dict[str, str]:
    """Describe what the course of a training depends on: options, hashes of files."""
    found = {"world_size": str(world_size)}
    for key, value in sorted(vars(args).items()):
        if key in _FREE or key.startswith(_FREE_PREFIXES):
            continue
        if key in _OF_UPDATES and not vars(args).get("update_bins"):
            # Without effect, and unknown to checkpoints of earlier versions.
            continue
        if key == "encoder_conf":
            # A base may move; the model checks its hash.
            value = {k: v for k, v in value.items() if k != "base"}
        found[key] = json.dumps(value, sort_keys=True, default=str)
    for path, name, _ in args.train_data_path_and_name_and_type:
        found[f"training data {name!r}"] = sha256_file(Path(path))
    for path in args.train_shape_file:
        found[f"shape file {Path(path).name}"] = sha256_file(Path(path))
    return found


def check_ranks(found: dict[str, str]) -> None:
    """Raise ``RecipeError`` on every rank where one has another fingerprint.

    Nodes may settle ``auto`` otherwise.
    """
    every = gather(found)
    for rank, other in enumerate(every):
        for key, one, two in _differences(every[0], other):
            raise RecipeError(
                f"{key}: rank 0 has {one}, rank {rank} has {two}; set it to one value "
                "for all"
            )


def check_fingerprint(
    saved: dict[str, str], now: dict[str, str], where: Any, allow_changed: bool
) -> list[str]:
    """Return and warn of the differences between two fingerprints, one line each.

    Where they are not allowed they raise ``RecipeError``.
    """
    changes = [f"{key}: {old} -> {new}" for key, old, new in _differences(saved, now)]
    if changes and not allow_changed:
        raise RecipeError(
            f"{where}: this training began under other conditions: "
            + "; ".join(changes)
            + ". Train into another directory (--output_dir, --expdir), restore them, "
            "or go on all the same with --allow_changed true"
        )
    for change in changes:
        logging.warning("resumed under another condition: %s", change)
    return changes


def _differences(one: dict[str, str], two: dict[str, str]) -> list[tuple[str, ...]]:
    return [
        (key, _short(one.get(key)), _short(two.get(key)))
        for key in sorted({*one, *two})
        if one.get(key) != two.get(key)
    ]


def _short(value: str | None) -> str:
    if value is None:
        return "not set"
    return value if len(value) <= 60 else value[:57] + "..."


def random_state(device: str) -> dict[str, Any]:
    """State of Python's, NumPy's and torch's generators, as plain values.

    With ``device`` ``"cuda"`` that of this process's GPU is kept too, and of no other:
    a later process may see more or fewer.
    """
    version, internal, gauss = random.getstate()
    name, keys, position, *gaussian = np.random.get_state()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position],
        "numpy_gauss": gaussian,
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if device == "cuda" else [],
    }


def set_random_state(state: dict[str, Any], device: str) -> None:
    """Undo everything drawn since :func:`random_state`; warn of another device."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position = state["numpy"]
    keys = keys.numpy().astype(np.uint32)
    np.random.set_state((name, keys, position, *state["numpy_gauss"]))
    torch.set_rng_state(state["torch"])
    before = "cuda" if state["cuda"] else "cpu"
    if before != device:
        logging.warning(
            "saved on %s and resumed on %s: dropout draws other random numbers",
            before,
            device,
        )
    elif device == "cuda":
        torch.cuda.set_rng_state(state["cuda"][0])


def reporter_state(reporter: Reporter) -> dict[str, Any]:
    """ESPnet's per-epoch results as plain values; durations as seconds."""

    def plain(value: Any) -> Any:
        if isinstance(value, datetime.timedelta):
            return value.total_seconds()
        return value.item() if isinstance(value, np.generic) else value

    stats = copy.deepcopy(reporter.stats)
    for figures in _parts(stats):
        figures.update({key: plain(value) for key, value in figures.items()})
    return {"epoch": reporter.epoch, "stats": stats}


def set_reporter_state(reporter: Reporter, state: dict[str, Any]) -> None:
    """Inverse of :func:`reporter_state`."""
    reporter.epoch = state["epoch"]
    reporter.stats = copy.deepcopy(state["stats"])
    for figures in _parts(reporter.stats):
        if "time" in figures:
            figures["time"] = datetime.timedelta(seconds=figures["time"])


def _parts(stats: dict[int, dict[str, dict]]) -> list[dict[str, Any]]:
    return [figures for parts in stats.values() for figures in parts.values()]


def sub_reporter_state(reporter: SubReporter) -> dict[str, Any]:
    """What an epoch has collected so far: one row per step and figure."""
    stats = {}
    for key, values in reporter.stats.items():
        # An epoch has 10^5 values: dataclasses.astuple would take seconds.
        if isinstance(values[0], WeightedAverage):
            rows = [[float(v.value), float(v.weight)] for v in values]
        else:
            rows = [[float(v.value)] for v in values]
        stats[key] = torch.tensor(rows, dtype=torch.float64)
    counts = {"count": reporter.count, "total_count": reporter.total_count}
    return {**counts, "stats": stats}


def set_sub_reporter_state(reporter: SubReporter, state: dict[str, Any]) -> None:
    """Inverse of :func:`sub_reporter_state`."""
    reporter.count = state["count"]
    reporter.total_count = state["total_count"]
    for key, rows in state["stats"].items():
        kind = Average if rows.shape[1] == 1 else WeightedAverage
        reporter.stats[key] = [kind(*row) for row in rows.tolist()]


def average_best_models(
    reporter: Reporter,
    output_dir: Path,
    criteria: Sequence[Sequence[str]],
    numbers: Sequence[int],
) -> None:
    """Write ``<part>.<key>.ave_<n>best.pth`` and the link ``<part>.<key>.ave.pth``.

    Floating-point tensors are averaged; others (counters, the base's hash) are those
    of the best epoch, where ESPnet's own function would add them up. ``criteria`` are
    ``(part, key, "min" or "max")``, ``numbers`` how many epochs to average, each.
    """
    for part, key, mode in criteria:
        if not reporter.has(part, key):
            continue
        epochs = reporter.sort_epochs(part, key, mode)
        wanted = sorted({min(n, len(epochs)) for n in numbers if n > 0}) or [1]
        for number in wanted:
            output = output_dir / f"{part}.{key}.ave_{number}best.pth"
            if number == 1:
                link(output, f"{epochs[0]}epoch.pth")
            else:
                state = _mean(output_dir, epochs[:number])
                with checked_file(output) as stream:
                    torch.save(state, stream)
        link(
            output_dir / f"{part}.{key}.ave.pth",
            f"{part}.{key}.ave_{wanted[-1]}best.pth",
        )


def _mean(output_dir: Path, epochs: Sequence[int]) -> dict[str, torch.Tensor]:
    first, *others = epochs
    best = read_state(output_dir / f"{first}epoch.pth")
    floats = {k: v.double() for k, v in best.items() if v.is_floating_point()}
    for epoch in others:
        state = read_state(output_dir / f"{epoch}epoch.pth")
        for name, total in floats.items():
            total += state[name]
    means = {k: (v / len(epochs)).to(best[k].dtype) for k, v in floats.items()}
    return best | means


class CheckedTrainer(Trainer):
    """Trains as ESPnet does; a kill or a full disk leaves no half-written file.

    ESPnet writes ``checkpoint.pth`` in place and the epoch's model after it: a
    training that ended between the two, or within one, could not go on.
    """

    @classmethod
    def run(cls, *args: Any, trainer_options: TrainerOptions, **kwargs: Any) -> None:
        """Train; a file that is read and not what was written is a ``RecipeError``."""
        with _checked_files():
            super().run(*args, trainer_options=trainer_options, **kwargs)
        # Of models that ESPnet removed.
        for path in Path(trainer_options.output_dir).glob(f"*epoch.pth{SUFFIX}"):
            if not path.with_suffix("").exists():
                path.unlink()


@contextmanager
def _checked_files() -> Iterator[None]:
    """Let ``torch.save`` and ``torch.load`` of a path keep checksums.

    ESPnet's trainer is one function that calls them by name.
    """
    save, load = torch.save, torch.load
    held: list[tuple[Any, Path]] = []

    def save_checked(state: Any, path: Any) -> None:
        held.append((state, Path(path)))
        if Path(path).name == LATEST:
            # Last, so that it never counts an epoch whose model is not there.
            return
        while held:
            state, path = held.pop()
            with checked_file(path) as stream:
                save(state, stream)

    def load_checked(path: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(path, str | Path):
            check_file(path)
        return load(path, *args, **kwargs)

    torch.save, torch.load = save_checked, load_checked
    try:
        yield
    finally:
        torch.save, torch.load = save, load


def experiment_bytes(trainable: int) -> int:
    """About what a pretraining leaves: two checkpoints with Adam's moments, a model."""
    return 4 * trainable * (2 * 3 + 1)
