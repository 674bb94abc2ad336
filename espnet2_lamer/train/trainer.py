"""ESPnet's trainer with step checkpoints, exact resume and frame-weighted updates."""

import argparse
import dataclasses
import logging
from typing import Any

from espnet2.train.trainer import Trainer, TrainerOptions
from espnet2.utils.types import str2bool

from espnet2_lamer.hubert.statistics import rank_and_ranks
from espnet2_lamer.train.checkpoint import check_ranks, fingerprint
from espnet2_lamer.train.run import TrainingRun


@dataclasses.dataclass
class LamerTrainerOptions(TrainerOptions):
    """ESPnet's options and those of :meth:`LamerTrainer.add_arguments`."""

    checkpoint_interval: int
    allow_changed: bool
    max_bad_updates: int
    grad_norm_groups: bool
    monitor_utts: int
    monitor_layers: list[int]
    monitor_control: str | None
    train_data_path_and_name_and_type: list[tuple[str, str, str]]
    valid_data_path_and_name_and_type: list[tuple[str, str, str]]
    encoder_conf: dict[str, Any]
    init_param: list[str]
    num_classes: int
    langs: list[str]
    replay_langs: list[str]
    fingerprint: dict[str, str]


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
        group.add_argument(
            "--checkpoint_interval",
            type=int,
            default=500,
            help="Updates between step checkpoints; one is written at each epoch's end",
        )
        group.add_argument(
            "--allow_changed",
            type=str2bool,
            default=False,
            help="Resume although options, data, base or number of ranks changed",
        )
        group.add_argument(
            "--max_bad_updates",
            type=int,
            default=20,
            help="Stop after so many updates in a row with a NaN or infinite gradient",
        )
        group.add_argument(
            "--grad_norm_groups",
            type=str2bool,
            default=False,
            help="Report gradient norms of lora_A, lora_B, routers and the rest apart",
        )
        group.add_argument(
            "--monitor_utts",
            type=int,
            default=32,
            help="Held-out utterances per language whose hidden states are compared "
            "with the base's at each validation (CKA; phone probe where phones.ctm is "
            "beside the validation's wav.scp); 0: none",
        )
        group.add_argument(
            "--monitor_layers",
            type=int,
            nargs="*",
            default=[],
            help="Layers that are compared; the last one's figures are logged "
            "(default: at 1/4, 1/2, 3/4 and 11/12 of the depth)",
        )
        group.add_argument(
            "--monitor_control",
            type=str,
            default=None,
            help="Experiment of the head-only control: its masked accuracy at the same "
            "epoch is logged beside this training's",
        )
        group.add_argument(
            "--sanity",
            type=str2bool,
            default=False,
            help="Do not train: overfit one batch, say whether it could be learnt, "
            "and exit with 0 or 1; writes sanity.json only",
        )
        group.add_argument(
            "--sanity_updates", type=int, default=200, help="Most updates of --sanity"
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

        Raises:
            RecipeError: Resume was refused, a file cannot be written, or too many
                updates in a row were bad.
            SystemExit: A signal asked to stop; a checkpoint was written.
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
