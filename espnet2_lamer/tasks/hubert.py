"""``LamerHubertTask``: continual pretraining through ESPnet's HubertTask."""

import argparse
import copy
import logging
import os
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.tasks.abs_task import optim_classes, scheduler_classes
from espnet2.tasks.hubert import HubertTask, encoder_choices, model_choices
from espnet2.train.dataset import ESPnetDataset
from espnet2.train.distributed_utils import get_rank
from torch.multiprocessing.spawn import ProcessException

from espnet2_lamer.asr.encoder.lamer_hubert import LamerHubertEncoder
from espnet2_lamer.compat import prepare_espnet
from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.tables import NumberTable, Table
from espnet2_lamer.fileio.text import text_lines, utf8_tables
from espnet2_lamer.hubert.espnet_model import LamerHubertPretrainModel
from espnet2_lamer.hubert.statistics import rank_and_ranks
from espnet2_lamer.layers.config import check_values
from espnet2_lamer.parallel import keep_freed_memory
from espnet2_lamer.precision import (
    AMP_DTYPES,
    AUTO,
    settle_amp_dtype,
    settled_amp_dtype,
)
from espnet2_lamer.tasks.dry_run import dry_run
from espnet2_lamer.tasks.option_check import (
    check_init_param,
    check_options,
    check_packages,
)
from espnet2_lamer.train.batching import (
    CollateOptions,
    LamerCollate,
    chosen_utterances,
    read_hours,
)
from espnet2_lamer.train.console import child_log, one_training, pass_signals_on
from espnet2_lamer.train.expansion import OLD_EXPERTS, expand_experts, keep_old_experts
from espnet2_lamer.train.iterator import BucketIterFactory
from espnet2_lamer.train.memory import read_device_bins
from espnet2_lamer.train.trainer import LamerTrainer
from espnet2_lamer.train.trial import check_sanity
from espnet2_lamer.train.update import PolynomialDecayLR, fused_option
from espnet2_lamer.train.utterances import Lengths


def register_hubert() -> None:
    """Let ESPnet's HuBERT task know our classes by name; safe to call again."""
    prepare_espnet()
    encoder_choices.classes["lamer_hubert"] = LamerHubertEncoder
    model_choices.classes["lamer"] = LamerHubertPretrainModel
    scheduler_classes["polynomialdecaylr"] = PolynomialDecayLR


# DDP workers are spawned and import this module to find the task: registering here
# gives them our classes too.
register_hubert()


class CompactDataset(ESPnetDataset):
    """ESPnet's data set whose tables stay on disk, see :class:`Table`.

    Those whose lines are the same as the table's ``like`` share its index.
    """

    def __init__(self, like: Table | None, *args: Any, **kwargs: Any) -> None:
        self._like = like
        super().__init__(*args, **kwargs)

    def _build_loader(self, path: str, loader_type: str, keys_to_load: Any) -> Any:
        """Build the loader of a table; those of other types are ESPnet's own."""
        if loader_type == "text":
            return Table(path, self._like)
        if loader_type == "text_int":
            return NumberTable(path, self._like)
        if loader_type != "sound":
            return super()._build_loader(path, loader_type, keys_to_load)
        loader = super()._build_loader(os.devnull, loader_type, keys_to_load)
        loader.loader.data = Table(path, self._like)
        return loader

    def part(self, names: Collection[str]) -> "CompactDataset":
        """Return a data set of these data alone, which keeps nothing in memory."""
        part = copy.copy(self)
        part.loader_dict = {key: self.loader_dict[key] for key in names}
        part.cache = None
        return part


class LamerHubertTask(HubertTask):
    """HubertTask whose defaults are ours and whose batches are length-bucketed."""

    trainer = LamerTrainer

    @classmethod
    def main(
        cls, args: argparse.Namespace | None = None, cmd: Sequence[str] | None = None
    ) -> None:
        """Check every option, then train.

        With ``--dry_run true`` only report, with ``--sanity true`` overfit one batch.
        ``RecipeError`` is a wrong option, a training that cannot go on, or a batch that
        was not learnt.
        """
        if args is None:
            args = cls.get_parser().parse_args(cmd)
        if not args.print_config:
            check_options(cls.get_parser(), args)
            check_packages(args)
            settle_amp_dtype(args)
            check_init_param(args)
        with one_training(args):
            cls._main(args)

    @classmethod
    def _main(cls, args: argparse.Namespace) -> None:
        if args.dry_run:
            dry_run(cls, args)
        elif args.sanity and not args.print_config:
            check_sanity(cls, args)
        elif args.ngpu > 1 and args.multiprocessing_distributed:
            with pass_signals_on() as request:
                try:
                    super().main(args=args)
                except ProcessException as error:
                    if request.signal:
                        raise SystemExit(128 + request.signal) from error
                    raise
        else:
            super().main(args=args)

    @classmethod
    def main_worker(cls, args: argparse.Namespace) -> None:
        """Run training; also the entry point of spawned processes, one per GPU."""
        if args.ngpu == 0:
            keep_freed_memory()
        with child_log():
            if args.distributed and get_rank(args.dist_rank, args.dist_launcher):
                # As ESPnet, which does it only where nobody set up logging before.
                logging.getLogger().setLevel(logging.ERROR)
            super().main_worker(args)
        if torch.distributed.is_initialized():
            # The recipe trains the control next, in the same process.
            torch.distributed.destroy_process_group()

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add ESPnet's arguments, ours, and our defaults."""
        HubertTask.add_task_arguments(parser)
        parser.add_argument(
            "--amp_dtype",
            choices=[AUTO, *AMP_DTYPES],
            default=AUTO,
            help="Autocast precision of the backbone; auto: bf16 on GPUs and CPUs that "
            "compute it themselves, else none, which is float32",
        )
        lists = {
            "exclude_langs": "Languages of utt2lang, beside wav.scp, that are left out "
            "of training and validation",
            "max_hours": "Most training speech of a language, e.g. eng=0.5; a random "
            "sample of its utterances stays, the same whatever --seed is",
            "langs": "Names of the languages that the data `lang` counts from 0, for "
            "figures per language",
            "replay_langs": "Those of --langs that are replayed, for their share of "
            "each epoch",
        }
        for name, text in lists.items():
            parser.add_argument(f"--{name}", nargs="*", default=[], help=text)
        parser.add_argument(
            "--expand_from",
            help="Earlier experiment with experts: its experts are the first ones of "
            "each layer, encoder_conf.lamer.allocation counts old and new together",
        )
        parser.add_argument(
            "--old_experts",
            choices=OLD_EXPERTS,
            default="frozen",
            help="What becomes of the experts of --expand_from: they stay as they are "
            "(routers train), or train with the others",
        )
        parser.set_defaults(
            iterator_type="task",
            frontend=None,
            normalize=None,
            specaug=None,
            input_size=1,
            encoder="lamer_hubert",
            model="lamer",
            token_type="word",
            num_att_plot=0,
        )

    @classmethod
    def optional_data_names(
        cls, train: bool = True, inference: bool = False
    ) -> tuple[str, ...]:
        """``lang`` is for per-language figures only, never model input."""
        return ("lang",)

    @classmethod
    def build_collate_fn(
        cls, args: argparse.Namespace, train: bool, draw: int = 1
    ) -> LamerCollate:
        """Return the collate function of a pass over the data."""
        options = CollateOptions(**args.collate_fn_conf)
        return LamerCollate(
            max_samples=options.max_sample_size,
            bucket=options.bucket_samples,
            mask_prob=args.encoder_conf.get("mask_prob", 0.8),
            mask_length=args.encoder_conf.get("mask_length", 10),
            seed=args.seed,
            draw=draw,
            train=train,
        )

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> LamerHubertPretrainModel:
        """Build encoder and model from parsed arguments."""
        if isinstance(args.token_list, str):
            # Kept in config.yaml, so that the experiment is portable.
            args.token_list = [
                line.rstrip("\r\n") for _, line in text_lines(args.token_list)
            ]
        encoder_class = encoder_choices.get_class(args.encoder)
        ours = issubclass(encoder_class, LamerHubertEncoder)
        check_values("", ("encoder", args.encoder, ours, "'lamer_hubert'"))
        encoder = encoder_class(num_classes=args.num_classes, **args.encoder_conf)
        model_class = model_choices.get_class(args.model)
        precision = settled_amp_dtype(args)
        model = model_class(
            encoder, args.token_list, amp_dtype=precision, **args.model_conf
        )
        # A config that is read back may lack all of these.
        options = vars(args)
        if options.get("output_dir") is not None:
            statistics = model.routing_statistics
            statistics.path = Path(args.output_dir) / "routing.jsonl"
            statistics.interval = options.get("log_interval") or 100
        langs, replayed = (options.get(k) or [] for k in ("langs", "replay_langs"))
        model.language_statistics.names = list(langs)
        model.replay_numbers = [n for n, lang in enumerate(langs) if lang in replayed]
        return model

    @classmethod
    def build_optimizers(
        cls, args: argparse.Namespace, model: torch.nn.Module
    ) -> list[torch.optim.Optimizer]:
        """Give the optimizer only what trains; take over experts to expand."""
        if args.amp_dtype == "fp16":
            if args.ngpu == 0:
                raise RecipeError(
                    "amp_dtype: found fp16 with ngpu 0, expected bf16 or none on a "
                    "CPU: fp16 needs a loss scale, which ESPnet has on GPUs only"
                )
            # ESPnet's trainer scales the loss under this option; the model's own
            # autocast decides what is computed in half precision.
            args.use_amp = True
        # Before a checkpoint of this training is read, which then has the last word.
        kept = expand_experts(model, args.expand_from) if args.expand_from else []
        trainable = [p for p in model.parameters() if p.requires_grad]
        more = fused_option(args.optim, args.optim_conf, trainable)
        optimizer = optim_classes[args.optim](trainable, **args.optim_conf, **more)
        if kept and args.old_experts == "frozen":
            keep_old_experts(kept, optimizer)
        return [optimizer]

    @classmethod
    def build_task_iter_factory(
        cls, args: argparse.Namespace, iter_options: Any, mode: str
    ) -> AbsIterFactory:
        """Build the bucketed iterator of ``train`` or ``valid``."""
        lengths = whole = Lengths.read(iter_options.shape_files[0])
        tables = [path for path, *_ in iter_options.data_path_and_name_and_type]
        utt2lang = Path(tables[0]).with_name("utt2lang")
        most = read_hours(args.max_hours) if iter_options.train else {}
        if args.exclude_langs or most:
            lengths = chosen_utterances(lengths, utt2lang, args.exclude_langs, most)
        rank, ranks = rank_and_ranks()
        hours = int(lengths.samples.sum(dtype=np.int64)) / SAMPLE_RATE / 3600
        update_bins = args.update_bins if iter_options.train else 0
        audio = (update_bins or iter_options.batch_bins) / SAMPLE_RATE
        logging.info(
            f"[{mode}] {len(lengths)} utterances, {hours:.2f} h, {audio:.0f} s of "
            f"audio per {'update' if update_bins else 'batch'}"
        )
        with utf8_tables(tables):
            dataset = CompactDataset(
                whole.table,
                iter_options.data_path_and_name_and_type,
                float_dtype=args.train_dtype,
                preprocess=iter_options.preprocess_fn,
                max_cache_size=iter_options.max_cache_size,
                max_cache_fd=iter_options.max_cache_fd,
                allow_multi_rates=iter_options.allow_multi_rates,
            )
        cls.check_task_requirements(
            dataset, args.allow_variable_data_keys, train=iter_options.train
        )
        return BucketIterFactory(
            dataset=dataset,
            lengths=lengths,
            batch_bins=iter_options.batch_bins,
            make_collate=partial(cls.build_collate_fn, args, iter_options.train),
            num_iters_per_epoch=iter_options.num_iters_per_epoch,
            seed=args.seed,
            train=iter_options.train,
            num_workers=args.num_workers,
            rank=rank,
            world_size=ranks,
            update_bins=update_bins or None,
            device_bins=read_device_bins(args.device_bins) if update_bins else None,
            pin_memory=args.ngpu > 0,
        )
