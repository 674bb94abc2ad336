"""``--dry_run true``: what a config builds and how long it trains, without weights."""

import argparse
import copy
import logging
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from espnet2.tasks.abs_task import scheduler_classes

from espnet2_lamer.asr.encoder.lamer_hubert import check_beside_base
from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.convert.load import read_architecture
from espnet2_lamer.data.hours import PAPER_HOURS
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers import LamerConfig, LamerFeedForward, parameter_report


@dataclass(frozen=True)
class DryRun:
    """What a config comes to.

    ``parameters`` are those of :func:`espnet2_lamer.layers.parameter_report`,
    ``allocation`` the experts of each layer, ``groups`` tensors and values of the
    optimizer's parameter groups, ``updates`` its steps in all (``None`` where the data
    decide). An update has at most ``seconds_per_update`` of audio, padding included, or
    with ``update_bins`` has them on average.
    """

    parameters: dict[str, int | float]
    allocation: list[int]
    groups: list[tuple[int, int]]
    updates: int | None
    seconds_per_update: float


def dry_run(task: type, args: argparse.Namespace) -> DryRun:
    """Build model, optimizer and schedule on the meta device and log what they are.

    Nothing is written and no weights are read: of ``encoder_conf.base`` only the
    configuration is, if it is at hand. Arguments are parsed and checked;
    ``token_list`` and ``output_dir`` may be missing.

    Raises:
        RecipeError: An option that the model, optimizer or schedule refuses.
    """
    # The classes may change what they get, and the caller keeps its arguments.
    args = argparse.Namespace(**copy.deepcopy(vars(args)))
    args.output_dir = None
    if args.token_list is None:
        args.token_list = [*map(str, range(args.num_classes)), "<unk>", "<sos/eos>"]
    base = args.encoder_conf.pop("base", None)
    try:
        if base is not None and (architecture := _architecture(base)):
            check_beside_base(args.encoder_conf, architecture)
            args.encoder_conf |= architecture
        task.build_collate_fn(args, train=True)
        with torch.device("meta"):
            model = task.build_model(args)
        if base is not None:
            # Taken for granted: the base brings its mask embedding, which is kept.
            model.encoder.hubert_pretrain_model.mask_generator.requires_grad_(False)
        (optimizer,) = task.build_optimizers(args, model)
        if args.scheduler is not None:
            scheduler_classes[args.scheduler](optimizer, **args.scheduler_conf)
    except (ValueError, TypeError, OSError) as error:
        raise RecipeError(f"{args.config or 'options'}: {error}") from error
    layers = model.encoder.wav2vec2.encoder.transformer.layers
    ffns = [layer.feed_forward for layer in layers]
    groups = [[p.numel() for p in group["params"]] for group in optimizer.param_groups]
    updates = None
    if args.num_iters_per_epoch is not None:
        # An epoch's last update may have fewer batches.
        updates = args.max_epoch * -(-args.num_iters_per_epoch // args.accum_grad)
    found = DryRun(
        parameter_report(model),
        [f.num_experts if isinstance(f, LamerFeedForward) else 0 for f in ffns],
        [(len(sizes), sum(sizes)) for sizes in groups],
        updates,
        (args.update_bins or args.batch_bins * args.accum_grad) / SAMPLE_RATE,
    )
    _log(found, args, base)
    if updates is not None:
        _warn(updates, args)
    return found


def _architecture(base: str) -> dict[str, Any]:
    try:
        return read_architecture(base)
    except RecipeError as error:
        if str(base).count("/") != 1 or str(base).startswith((".", "/")):
            raise
        logging.warning(
            f"encoder_conf.base: {error}; the config's own architecture (HuBERT-Large "
            "where it names none) is assumed"
        )
        return {}


def _named(name: str | None, options: dict[str, Any]) -> str:
    values = [f"{key}={value}" for key, value in options.items()]
    return "none" if name is None else " ".join([name, *values])


def _log(found: DryRun, args: argparse.Namespace, base: str | None) -> None:
    counts = found.parameters
    logging.info("dry run of %s: no weights are read", args.config or "the options")
    logging.info("base: %s", base or "none; random weights of this architecture")
    logging.info("parameters:")

    def share(name: str, whole: str = "backbone") -> str:
        return f"{counts[f'{name}_percent_of_{whole}']:.3f} % of the {whole}"

    for name, note in (
        ("total", "= backbone + lora + router + head"),
        ("backbone", "convolutions, transformer, mask embedding of a base"),
        ("lora", "A and B of all experts"),
        ("router", f"with lora {share('lora_and_router')}"),
        ("head", "unit embeddings, projection, a mask embedding that trains"),
        ("trainable", f"{share('trainable', 'total')}, {share('trainable')}"),
        ("active", f"lora that one frame uses, {share('active')}"),
    ):
        logging.info("  %-9s %13s  %s", name, f"{counts[name]:,}", note)
    logging.info("experts per layer: %s", _groups(found.allocation))
    if args.encoder_conf.get("lamer"):
        ranks = args.encoder_conf["lamer"].get("rank", LamerConfig.rank)
        logging.info("rank of an expert, shallow to deep: %s", ranks)
    logging.info("optimizer: %s", _named(args.optim, args.optim_conf))
    for tensors, values in found.groups:
        logging.info("  group of %d tensors, %s values", tensors, f"{values:,}")
    logging.info("schedule: %s", _named(args.scheduler, args.scheduler_conf))
    if found.updates is None:
        logging.info("updates: %d passes over the data", args.max_epoch)
    else:
        divided = "" if args.update_bins else f" / accum_grad {args.accum_grad}"
        logging.info(
            f"updates: {found.updates:,} (max_epoch {args.max_epoch} x "
            f"num_iters_per_epoch {args.num_iters_per_epoch:,}{divided})"
        )
    most = "" if args.update_bins else "at most "
    logging.info("audio per update: %s%.2f s", most, found.seconds_per_update)
    if found.updates is not None:
        hours = found.updates * found.seconds_per_update / 3600
        paper = sum(PAPER_HOURS.values())
        logging.info(
            f"audio in all: {most}{hours:,.0f} h, {hours / paper:.1f} epochs over "
            f"the paper's {paper:.3f} h"
        )


def _groups(allocation: list[int]) -> str:
    parts, first = [], 1
    for count, layers in groupby(allocation):
        last = first + len(list(layers)) - 1
        parts.append(f"{count} in layers {first}-{last}")
        first = last + 1
    return f"{', '.join(parts)}; {sum(allocation)} in all"


def _warn(updates: int, args: argparse.Namespace) -> None:
    planned = args.scheduler_conf.get("total_steps") or updates
    if planned != updates:
        logging.warning(
            f"scheduler_conf.total_steps: found {planned:,}, but max_epoch, "
            f"num_iters_per_epoch and accum_grad make {updates:,} updates"
        )
    left = args.num_iters_per_epoch % args.accum_grad
    if left:
        logging.warning(
            f"num_iters_per_epoch: {args.num_iters_per_epoch} is no multiple of "
            f"accum_grad ({args.accum_grad}): the last update of each epoch has {left} "
            "batches"
        )
