"""How long a pretraining is where it follows from the hours of speech."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from espnet2_lamer.constants import SAMPLE_RATE

#: Fewest and most updates that the rule gives.
FEWEST, MOST = 2_000, 50_000
#: Share of updates in which the rate rises: 32k of 400k, as train_ssl_lamer.yaml.
WARM_UP = 0.08
#: Share of a training's updates in a trial of experts, the fewest and the most.
TRIAL_SHARE, TRIAL_FEWEST, TRIAL_MOST = 0.1, 100, 2_000
#: Epochs (validations, checkpoints) of a training.
EPOCHS = 20


@dataclass(frozen=True)
class Schedule:
    """Updates in all, of an epoch and of the warm-up; epochs."""

    updates: int
    per_epoch: int
    epochs: int
    warm_up: int

    def arguments(self, config: Mapping[str, Any]) -> list[str]:
        """The same as ESPnet's options; it counts batches where these add up."""
        batches = 1 if config.get("update_bins") else config.get("accum_grad", 1)
        return [
            *("--max_epoch", str(self.epochs)),
            *("--num_iters_per_epoch", str(self.per_epoch * batches)),
            *("--scheduler_conf", f"total_steps={self.updates}"),
            *("--scheduler_conf", f"warmup_steps={self.warm_up}"),
        ]


def seconds_per_update(config: Mapping[str, Any]) -> float:
    """Seconds of audio, padding included, of an update of a pretraining config."""
    bins = config.get("update_bins")
    bins = bins or config["batch_bins"] * config.get("accum_grad", 1)
    return bins / SAMPLE_RATE


def own_schedule(config: Mapping[str, Any]) -> Schedule:
    """The schedule that a config states; without updates of an epoch, 0 updates."""
    micro = config.get("num_iters_per_epoch") or 0
    per_epoch, epochs = -(-micro // config.get("accum_grad", 1)), config["max_epoch"]
    warm_up = (config.get("scheduler_conf") or {}).get("warmup_steps", 0)
    return Schedule(per_epoch * epochs, per_epoch, epochs, warm_up)


def schedule_by_hours(
    hours: float, passes: float, config: Mapping[str, Any]
) -> Schedule:
    """The schedule of ``passes`` over ``hours`` of training speech, within bounds.

    updates = passes * hours * 3600 / (seconds of audio per update), at least
    :data:`FEWEST` and at most :data:`MOST`, rounded up to :data:`EPOCHS` epochs of
    equal length; the warm-up is :data:`WARM_UP` of them.
    """
    updates = passes * hours * 3600 / seconds_per_update(config)
    updates = min(max(round(updates), FEWEST), MOST)
    per_epoch = -(-updates // EPOCHS)
    updates = per_epoch * EPOCHS
    return Schedule(updates, per_epoch, EPOCHS, round(WARM_UP * updates))


def trial_schedule(updates: int) -> Schedule:
    """The schedule of ``--allocation learnt``'s trial, before so many updates.

    One epoch of a tenth of them, 100 to 2,000.
    """
    count = min(max(round(TRIAL_SHARE * updates), TRIAL_FEWEST), TRIAL_MOST)
    return Schedule(count, count, 1, round(WARM_UP * count))
