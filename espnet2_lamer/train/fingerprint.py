"""What a resumed training must have in common with the one that was interrupted."""

import argparse
import json
from pathlib import Path
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.hubert.statistics import gather

# Options that change neither data, model nor updates.
_FREE = set(
    """
    config output_dir resume log_level log_interval print_config dry_run ngpu
    num_workers num_att_plot max_epoch patience keep_nbest_models
    nbest_averaging_interval best_model_criterion early_stopping_criterion
    use_matplotlib use_tensorboard use_wandb create_graph_in_tensorboard version
    required distributed checkpoint_interval allow_changed max_bad_updates
    grad_norm_groups local_rank multiprocessing_distributed write_collected_feats
    unused_parameters cudnn_enabled cudnn_benchmark train_shape_file valid_shape_file
    valid_data_path_and_name_and_type train_data_path_and_name_and_type
    allow_variable_data_keys token_list max_cache_size max_cache_fd
    valid_max_cache_size sanity sanity_updates replay_langs monitor_utts monitor_layers
    monitor_control
    """.split()
)
_FREE_PREFIXES = ("dist_", "wandb_")


def fingerprint(args: argparse.Namespace, world_size: int) -> dict[str, str]:
    """Describe what the course of a training depends on: options, hashes of files."""
    found = {"world_size": str(world_size)}
    for key, value in sorted(vars(args).items()):
        if key in _FREE or key.startswith(_FREE_PREFIXES):
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
    """Check that every rank has this fingerprint; nodes may settle ``auto`` otherwise.

    Raises:
        RecipeError: On every rank, with the first rank and option that differ.
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
    """Return the differences between two fingerprints, one line each.

    Raises:
        RecipeError: There are some, and they were not allowed.
    """
    changes = [f"{key}: {old} -> {new}" for key, old, new in _differences(saved, now)]
    if changes and not allow_changed:
        raise RecipeError(
            f"{where}: this training began under other conditions: "
            + "; ".join(changes)
            + ". Train into another directory (--output_dir, --expdir), restore them, "
            "or go on all the same with --allow_changed true"
        )
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
