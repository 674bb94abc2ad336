"""Choose the learning rate of heads that were trained at several, by their dev loss."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.runs import Run


@dataclass(frozen=True)
class Rate:
    """What one learning rate gave.

    Attributes:
        head: Name of the run without seed and learning rate.
        system: Its upstream.
        learning_rate: The rate; None is the config's own.
        dev_loss: Best loss on the dev set, mean over seeds.
        chosen: Whether it is the head's best.
    """

    head: str
    system: str
    learning_rate: float | None
    dev_loss: float
    chosen: bool


def head_name(run: Run) -> str:
    """Name of a run without its seed and learning rate."""
    return replace(run, seed=0, learning_rate=None).name


def choose_rates(
    runs: Sequence[Run], expdir: str | Path
) -> tuple[list[Run], list[Rate]]:
    """Keep each head's runs at its best learning rate.

    ML-SUPERB's hidden set is evaluated at several learning rates, everything else
    fixed, and the best result counts. Here the best is the one with the lowest dev
    loss, mean over seeds: test sets choose nothing.

    Args:
        runs: Trained runs.
        expdir: Parent of their directories, for ``training.json``.

    Returns:
        The runs that are scored, in their order, and what every rate gave, empty where
        no head has more than one.

    Raises:
        RecipeError: A run of a sweep was not trained.
    """
    heads: dict[str, dict[float | None, list[Run]]] = {}
    for run in runs:
        heads.setdefault(head_name(run), {}).setdefault(run.learning_rate, []).append(
            run
        )
    best: dict[str, float | None] = {}
    rates = []
    for head, by_rate in heads.items():
        if len(by_rate) == 1:
            best[head] = next(iter(by_rate))
            continue
        losses = {
            rate: fmean(_dev_loss(run, expdir) for run in trained)
            for rate, trained in by_rate.items()
        }
        best[head] = min(losses, key=losses.__getitem__)
        rates += [
            Rate(head, by_rate[rate][0].system, rate, loss, rate == best[head])
            for rate, loss in losses.items()
        ]
    chosen = [run for run in runs if run.learning_rate == best[head_name(run)]]
    return chosen, rates


def _dev_loss(run: Run, expdir: str | Path) -> float:
    path = run.directory(expdir) / "training.json"
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["valid_loss"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise RecipeError(
            f"{path}: no dev loss of this run ({error!r}); stages 10 and 11 write it "
            "when training ends"
        ) from error
