"""``--allocation learnt``: experts and ranks of every layer from a trial training."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from espnet2_lamer.convert.load import read_architecture
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.runs import made_from
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.fileio.prints import audio_digest
from espnet2_lamer.layers import LamerConfig, parse_allocation, parse_ranks
from espnet2_lamer.layers.apportion import apportion, apportion_ranks
from espnet2_lamer.layers.importance import effective_rank
from espnet2_lamer.recipe.files import ssl_audio
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.schedule import Schedule, trial_schedule
from espnet2_lamer.recipe.settle import experts_options, settings_of_experts
from espnet2_lamer.recipe.upstreams import base_path, read_checkpoints
from espnet2_lamer.tasks.hubert import LamerHubertTask
from espnet2_lamer.train.importance import Scores, score_experts

#: Batches of the training set over which importance is averaged.
BATCHES = 50
_CRITERION = (
    "importance of an expert's component: |sigma dL/dsigma|, sigma a singular value of "
    "B A, mean over batches (AdaLoRA, arXiv 2303.10512, Eq. 8); experts of a layer in "
    "proportion to its sum, rank in proportion to the effective number of components"
)
#: Trains an experiment with ESPnet's options of experts, and others.
Train = Callable[[Path, list[str], list[str]], None]


def layer_measures(scores: Scores) -> tuple[list[float], list[float]]:
    """Importance of each layer, and effective rank of its experts.

    The former adds up components, experts and targets; of the latter targets count by
    their importance, and a layer without any has 1.
    """
    importance, ranks = [], []
    for targets in scores:
        parts = [torch.tensor(x, dtype=torch.float64) for x in targets.values()]
        sums = [float(part.sum()) for part in parts]
        pairs = zip(parts, sums, strict=True)
        weighed = sum(effective_rank(part) * weight for part, weight in pairs)
        importance.append(sum(sums))
        ranks.append(weighed / sum(sums) if sum(sums) else 1.0)
    return importance, ranks


def plan_trial(lamer: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """Return the budget that options of experts are, and what their trial has.

    ``budget`` counts experts, ``budget_components`` those of their rank: a row of A and
    a column of B in each target, as large in every layer of a network. Routing needs
    ``minimum`` experts in a layer. The trial has twice the mean number of experts, in
    every layer as many: layers are then alike but for what they are worth.
    """
    config = LamerConfig(**lamer)
    counts = parse_allocation(config.allocation, num_layers)
    ranks = parse_ranks(config.rank, num_layers)
    return {
        "budget": sum(counts),
        "budget_components": _components(counts, ranks),
        "budget_of": f"{config.allocation} x rank {config.rank}",
        "minimum": config.top_k or 1,
        "trial_allocation": -(-2 * sum(counts) // num_layers),
        "trial_rank": max(ranks),
    }


def spend(plan: Mapping[str, Any], scores: Scores) -> dict[str, Any]:
    """Spread the budget of :func:`plan_trial` by a trial's scores.

    Raises:
        ValueError: The budget is below the fewest, or nothing has importance.
    """
    importance, effective = layer_measures(scores)
    counts = apportion(plan["budget"], importance, plan["minimum"])
    ranks = apportion_ranks(plan["budget_components"], effective, counts)
    return {
        "allocation": counts,
        "rank": ranks,
        "components": _components(counts, ranks),
        "importance_per_layer": importance,
        "effective_rank_per_layer": effective,
    }


def _components(counts: list[int], ranks: list[int]) -> int:
    return sum(n * r for n, r in zip(counts, ranks, strict=True))


def learnt_allocation(options: Options, updates: int, train: Train) -> list[str]:
    """Train with more experts than the budget, measure them, and spend the budget.

    The trial is a training of its own in ``trial`` of the experiment, on the data and
    with the seed of stage 7; see :func:`plan_trial` and
    :func:`~espnet2_lamer.recipe.schedule.trial_schedule`.
    Importance is averaged over :data:`BATCHES` batches of the training set. All of it,
    and what followed, is written to ``allocation.json`` of the experiment. A run with
    the same inputs reads it there; a trial that was killed goes on. Its weights are
    removed in the end: the training, of so many ``updates``, begins anew.

    Returns:
        ESPnet's options of the experts.

    Raises:
        RecipeError: The config goes on from other experts, the nodes are several, or
            the budget is too small.
    """
    config = read_yaml(options.ssl_config)
    if config.get("expand_from"):
        raise RecipeError(
            f"--allocation learnt: {options.ssl_config}: expand_from: found "
            f"{config['expand_from']}, whose experts have their layers already; leave "
            "it out, or name counts"
        )
    path, schedule = options.ssl_experiment / "allocation.json", trial_schedule(updates)
    inputs = {
        "config": settings_of_experts(config),
        "base": read_checkpoints(options)["base"]["sha256"],
        "labels": sha256_file(options.raw / "ssl_train" / "text.km.json"),
        "audio": audio_digest(ssl_audio(options)),
        "seed": options.seed,
        "trial_updates": schedule.updates,
        "batches": BATCHES,
    }
    found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if found.get("inputs") != json.loads(json.dumps(inputs)):
        found = _learn(options, config, schedule, inputs, train)
        write_json(path, found)
    allocation, ranks = (",".join(map(str, found[k])) for k in ("allocation", "rank"))
    logging.info(
        "--allocation learnt: experts %s, ranks %s: %d of the %d components of %s; "
        "importance per layer %s; %s",
        *(allocation, ranks, found["components"], found["budget_components"]),
        found["budget_of"],
        " ".join(f"{value:.3g}" for value in found["importance_per_layer"]),
        path,
    )
    return experts_options(allocation, ranks)


def _learn(
    options: Options,
    config: Mapping[str, Any],
    schedule: Schedule,
    inputs: Mapping[str, Any],
    train: Train,
) -> dict[str, Any]:
    if options.num_nodes > 1:
        raise RecipeError(
            f"--allocation learnt: found --num_nodes {options.num_nodes}, expected 1 "
            "for the trial, which each node would run; with --sanity true --num_nodes "
            "1 and else the same options the stage writes allocation.json, which all "
            "nodes then read"
        )
    trial = options.ssl_experiment / "trial"
    if trial.is_dir() and not made_from(trial / "inputs.json", inputs):
        # Another's: what is there cannot go on.
        shutil.rmtree(trial)
    write_json(trial / "inputs.json", inputs)
    num_layers = read_architecture(base_path(options))["encoder_num_layers"]
    try:
        plan = plan_trial(config["encoder_conf"]["lamer"], num_layers)
        count, rank = plan["trial_allocation"], plan["trial_rank"]
        logging.info(
            "--allocation learnt: a trial of %d updates with %d experts of rank %d in "
            "each layer, seed %d: %s",
            *(schedule.updates, count, rank, options.seed, trial),
        )
        more = [*schedule.arguments(config), "--monitor_utts", "0"]
        train(trial, experts_options(str(count), str(rank)), more)
        scores = score_experts(LamerHubertTask, trial, BATCHES)
        found = spend(plan, scores)
    except ValueError as error:
        raise RecipeError(
            f"--allocation learnt: {options.ssl_config}: {error}"
        ) from error
    shutil.rmtree(trial / "checkpoints", ignore_errors=True)
    for weights in trial.glob("*.pth*"):
        weights.unlink()
    more = {"criterion": _CRITERION, "importance": scores, "inputs": inputs}
    return found | plan | more
