"""ESPnet's trainer with step checkpoints, exact resume and frame-weighted updates."""

import argparse
import dataclasses
import logging
from typing import Any

from espnet2.train.trainer import Trainer, TrainerOptions
from espnet2.utils.types import str2bool

from espnet2_lamer.hubert.statistics import rank_and_ranks
from espnet2_lamer.train.checkpoint import check_ranks, fingerprint
from espnet2_lamer.train.memory import AUTO
from espnet2_lamer.train.run import TrainingRun


def _option(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass
class LamerTrainerOptions(TrainerOptions):
    """ESPnet's options and ours; each with a help text is one of the command line."""

    monitor_layers: list[int]
    train_data_path_and_name_and_type: list[tuple[str, str, str]]
    valid_data_path_and_name_and_type: list[tuple[str, str, str]]
    encoder_conf: dict[str, Any]
    init_param: list[str]
    num_classes: int
    langs: list[str]
    replay_langs: list[str]
    fingerprint: dict[str, str]
    update_bins: int = _option(
        0,
        "Samples of audio per update, over all processes and micro-batches: the same "
        "utterances on any number of them. accum_grad then follows and stays 1, and "
        "num_iters_per_epoch counts updates. 0: batch_bins times accum_grad",
    )
    device_bins: str = _option(
        AUTO,
        "Most samples, padding included, that a process computes at a time (with "
        "update_bins). auto: on a GPU what its memory holds by two trial batches, on a "
        "CPU batch_bins; kept in checkpoints",
    )
    feature_cache_gb: float = _option(
        0.0,
        "Most that the output of the frozen convolution stack may take on disk, in "
        "10^9 bytes, for utterances that are not cropped: computed once, and read in "
        "every epoch. 0: none",
    )
    feature_cache_dir: str | None = _option(
        None, "Where it is kept; without, in feature_cache of the output folder"
    )
    checkpoint_interval: int = _option(
        500, "Updates between step checkpoints; one is written at each epoch's end"
    )
    allow_changed: bool = _option(
        False, "Resume although options, data, base or number of ranks changed"
    )
    max_bad_updates: int = _option(
        20, "Stop after so many updates in a row with a NaN or infinite gradient"
    )
    grad_norm_groups: bool = _option(
        False, "Report gradient norms of lora_A, lora_B, routers and the rest apart"
    )
    norms_interval: int = _option(
        500,
        "Updates between lines of norms.jsonl (norms of experts and routers); one is "
        "written at each epoch's end; 0: none",
    )
    monitor_utts: int = _option(
        32,
        "Held-out utterances per language whose hidden states are compared with the "
        "base's at each validation (CKA; phone probe where phones.ctm is beside the "
        "validation's wav.scp); 0: none",
    )
    monitor_control: str | None = _option(
        None,
        "Experiment of the head-only control: its masked accuracy at the same epoch is "
        "logged beside this training's",
    )
    sanity: bool = _option(
        False,
        "Do not train: overfit one batch, say whether it could be learnt, and exit "
        "with 0 or 1; writes sanity.json only",
    )
    sanity_updates: int = _option(200, "Most updates of --sanity")


class LamerTrainer(Trainer):
    """Takes ESPnet's options, writes ESPnet's files, and loses nothing when killed.

    Beside ``<epoch>epoch.pth`` and its links, ``checkpoints/`` holds the last two step
    checkpoints; ``checkpoint.pth`` is a link to the latest. A restarted training goes
    on at the very update, with the same batches, masks and random numbers.

    Multiple optimizers, sharded DDP, DeepSpeed and ESPnet's own adapters are not
    supported.
    """

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add our options to ESPnet's parser."""
        group = parser.add_argument_group("Lamer trainer related")
        kinds = {bool: str2bool, int: int, float: float}
        for field in dataclasses.fields(LamerTrainerOptions):
            if "help" in field.metadata:
                group.add_argument(
                    f"--{field.name}",
                    type=kinds.get(field.type, str),
                    default=field.default,
                    help=field.metadata["help"],
                )
        group.add_argument(
            "--monitor_layers",
            type=int,
            nargs="*",
            default=[],
            help="Layers that are compared; the last one's figures are logged "
            "(default: at 1/4, 1/2, 3/4 and 11/12 of the depth)",
        )

    @classmethod
    def build_options(cls, args: argparse.Namespace) -> LamerTrainerOptions:
        """Collect what training needs from the parsed options."""
        _, ranks = rank_and_ranks()
        conditions = fingerprint(args, ranks)
        check_ranks(conditions)
        values = vars(args) | {"fingerprint": conditions}
        names = [field.name for field in dataclasses.fields(LamerTrainerOptions)]
        return LamerTrainerOptions(**{name: values[name] for name in names})

    @classmethod
    def run(
        cls,
        model,
        optimizers,
        schedulers,
        train_iter_factory,
        valid_iter_factory,
        plot_attention_iter_factory,
        trainer_options,
        distributed_option,
    ) -> None:
        """Train; see :class:`~espnet2_lamer.train.run.TrainingRun`.

        ``RecipeError``: resume was refused, a file cannot be written, or too many
        updates in a row were bad. ``SystemExit``: a signal asked to stop, a checkpoint
        was written.
        """
        if plot_attention_iter_factory is not None:
            logging.warning("attention plots are not made: a HuBERT has no decoder")
        TrainingRun(
            model,
            optimizers[0],
            schedulers[0],
            train_iter_factory,
            valid_iter_factory,
            trainer_options,
            distributed_option,
        ).run()
