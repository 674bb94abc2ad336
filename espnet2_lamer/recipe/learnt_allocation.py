"""``--allocation learnt``: experts and ranks of every layer from a trial training."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from espnet2_lamer.recipe.schedule import WARM_UP, Schedule
from espnet2_lamer.recipe.settle import experts_options, settings_of_experts
from espnet2_lamer.recipe.upstreams import base_path, read_checkpoints
from espnet2_lamer.tasks.hubert import LamerHubertTask
from espnet2_lamer.train.importance import score_experts

#: A trial is this share of the training's updates, within bounds.
SHARE, FEWEST, MOST = 0.1, 100, 2_000
#: Batches of the training set over which importance is averaged.
BATCHES = 50
_CRITERION = (
    "importance of an expert's component: |sigma dL/dsigma|, sigma a singular value of "
    "B A, mean over batches (AdaLoRA, arXiv 2303.10512, Eq. 8); experts of a layer in "
    "proportion to its sum, rank in proportion to the effective number of components"
)


@dataclass(frozen=True)
class Budget:
    """What the config's own allocation has, in experts and in components of rank.

    A component of one expert is a row of A and a column of B in each target; every
    layer of a network has the same sizes.
    """

    counts: list[int]
    ranks: list[int]
    minimum: int

    @classmethod
    def of(cls, lamer: Mapping[str, Any], num_layers: int) -> "Budget":
        """Read the options of experts, and the fewest that routing needs."""
        config = LamerConfig(**lamer)
        counts = parse_allocation(config.allocation, num_layers)
        ranks = parse_ranks(config.rank, num_layers)
        return cls(counts, ranks, config.top_k or 1)

    @property
    def experts(self) -> int:
        """Experts of all layers."""
        return sum(self.counts)

    @property
    def components(self) -> int:
        """Components of all experts."""
        return components(self.counts, self.ranks)

    @property
    def trial(self) -> tuple[int, int]:
        """Experts of each layer, and their rank, while importance is measured.

        Twice the mean number, in every layer as many: layers are then alike but for
        what they are worth.
        """
        return -(-2 * self.experts // len(self.counts)), max(self.ranks)

    def spend(
        self, scores: list[dict[str, list[list[float]]]]
    ) -> tuple[list[int], list[int]]:
        """Return experts and rank of each layer.

        Raises:
            ValueError: The budget is below the fewest, or nothing has importance.
        """
        counts = apportion(self.experts, importance_of(scores), self.minimum)
        return counts, apportion_ranks(self.components, effective_ranks(scores), counts)


def components(counts: list[int], ranks: list[int]) -> int:
    """Components of rank of all experts."""
    return sum(n * r for n, r in zip(counts, ranks, strict=True))


def importance_of(scores: list[dict[str, list[list[float]]]]) -> list[float]:
    """Sum the importance of each layer's components, experts and targets."""
    return [
        sum(sum(map(sum, experts)) for experts in targets.values())
        for targets in scores
    ]


def effective_ranks(scores: list[dict[str, list[list[float]]]]) -> list[float]:
    """Effective rank of each layer's experts; targets count by their importance."""
    found = []
    for targets in scores:
        parts = [torch.tensor(x, dtype=torch.float64) for x in targets.values()]
        weights = [float(part.sum()) for part in parts]
        pairs = zip(parts, weights, strict=True)
        total = sum(effective_rank(part) * weight for part, weight in pairs)
        found.append(total / sum(weights) if sum(weights) else 1.0)
    return found


def trial_schedule(updates: int) -> Schedule:
    """One epoch of a tenth of a training's updates, 100 to 2,000 of them."""
    count = min(max(round(SHARE * updates), FEWEST), MOST)
    return Schedule(count, count, 1, round(WARM_UP * count))


def learnt_allocation(
    options: Options, updates: int, train: Callable[[Path, list[str], list[str]], None]
) -> list[str]:
    """Train with more experts than the budget, measure them, and spend the budget.

    The trial is a training of its own in ``trial`` of the experiment (the data, seed
    and config of stage 7, :func:`trial_schedule`, :attr:`Budget.trial`); importance
    is averaged over :data:`BATCHES` batches of the training set. Both, and what
    followed, are written to ``allocation.json`` of the experiment. A run with the same
    inputs reads it there; a trial that was killed goes on. Its weights are removed in
    the end: the training begins anew.

    Args:
        options: Of the recipe.
        updates: Those of the training.
        train: Trains an experiment with ESPnet options of experts, and others.

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
        if options.num_nodes > 1:
            raise _one_node_first(options.num_nodes)
        trial = options.ssl_experiment / "trial"
        if trial.is_dir() and not made_from(trial / "inputs.json", inputs):
            # Another's, or one that was never begun: what is there cannot go on.
            shutil.rmtree(trial)
        write_json(trial / "inputs.json", inputs)
        found = _learn(options, config, schedule, train) | {"inputs": inputs}
        write_json(path, found)
        shutil.rmtree(trial / "checkpoints", ignore_errors=True)
        for weights in trial.glob("*.pth*"):
            weights.unlink()
    allocation, ranks = (
        ",".join(map(str, found[key])) for key in ("allocation", "rank")
    )
    logging.info(
        "--allocation learnt: experts %s, ranks %s: %d of the %d components of %s; "
        "importance per layer %s; %s",
        allocation,
        ranks,
        found["components"],
        found["budget_components"],
        found["budget_of"],
        " ".join(f"{value:.3g}" for value in found["importance_per_layer"]),
        path,
    )
    return experts_options(allocation, ranks)


def _one_node_first(found: int) -> RecipeError:
    return RecipeError(
        f"--allocation learnt: found --num_nodes {found}, expected 1 for the trial, "
        "which each node would run; with --sanity true --num_nodes 1 and else the same "
        "options the stage writes allocation.json, which all nodes then read"
    )


def _learn(
    options: Options,
    config: Mapping[str, Any],
    schedule: Schedule,
    train: Callable[[Path, list[str], list[str]], None],
) -> dict[str, Any]:
    lamer = config["encoder_conf"]["lamer"]
    num_layers = read_architecture(base_path(options))["encoder_num_layers"]
    trial = options.ssl_experiment / "trial"
    try:
        budget = Budget.of(lamer, num_layers)
        count, rank = budget.trial
        logging.info(
            "--allocation learnt: a trial of %d updates with %d experts of rank %d in "
            "each layer, seed %d: %s",
            schedule.updates,
            count,
            rank,
            options.seed,
            trial,
        )
        train(
            trial,
            experts_options(str(count), str(rank)),
            [*schedule.arguments(config), "--monitor_utts", "0"],
        )
        scores = score_experts(LamerHubertTask, trial, BATCHES)
        counts, ranks = budget.spend(scores)
    except ValueError as error:
        raise RecipeError(
            f"--allocation learnt: {options.ssl_config}: {error}"
        ) from error
    return {
        "allocation": counts,
        "rank": ranks,
        "criterion": _CRITERION,
        "importance_per_layer": importance_of(scores),
        "effective_rank_per_layer": effective_ranks(scores),
        "importance": scores,
        "budget": budget.experts,
        "budget_of": f"{lamer['allocation']} x rank {lamer.get('rank', 12)}",
        "budget_components": budget.components,
        "components": components(counts, ranks),
        "minimum": budget.minimum,
        "trial_allocation": count,
        "trial_rank": rank,
    }
