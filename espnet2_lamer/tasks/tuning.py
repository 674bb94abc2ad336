"""Which weights train with an ASR head, from which update on, and how fast."""

import argparse
import logging
from typing import Any

import torch
from espnet2.tasks.abs_task import optim_classes
from torch import nn

from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.constants import LID_ROUTED, TUNES
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers.inspection import adapter_kinds

# Of the upstream's weights: keys of ``upstream_optim_conf``.
_GROUPS = ("experts", "backbone")


def tuned_weights(
    upstream: nn.Module, tune: str, freeze_convolution: bool, last_state: int
) -> dict[str, nn.Parameter]:
    """Return the weights of an upstream that train, by name, and let no other train.

    ``tune`` is ``head``: none; ``experts``: LoRA experts and routers; ``all``: the
    transformer, too, and without ``freeze_convolution`` the convolutions;
    ``lid_routed``: the LoRA that the language routes, and its identifier.
    Blocks after ``last_state``, which the head does not read, never train.

    Raises:
        RecipeError: The upstream has no such weights, or ``tune`` is unknown.
    """
    if tune not in TUNES:
        expected = ", ".join(TUNES)
        raise RecipeError(f"tune: found {tune!r}, expected one of {expected}")
    upstream.requires_grad_(False)
    if tune == "head":
        return {}
    if not isinstance(upstream, Upstream):
        raise RecipeError(
            f"tune: found {tune!r} with an S3PRL upstream, expected head: S3PRL "
            "upstreams stay frozen here"
        )
    named = dict(upstream.named_parameters())
    if tune in ("experts", LID_ROUTED):
        kinds = adapter_kinds(upstream)
        named = {name: weight for name, weight in named.items() if weight in kinds}
        if not named:
            raise RecipeError(
                "tune: found 'experts' with an upstream that has no LoRA experts; give "
                "a pretraining with experts, or tune all"
            )
    unread = [f"wav2vec2.encoder.transformer.layers.{n}." for n in range(last_state)]
    blocks = "wav2vec2.encoder.transformer.layers."
    chosen = {}
    for name, weight in named.items():
        after = name.startswith(blocks) and not name.startswith(tuple(unread))
        # The norm behind the last block, or before the first one of a post-norm stack.
        final = name.startswith("wav2vec2.encoder.transformer.layer_norm.")
        transformer = upstream.wav2vec2.encoder.transformer
        whole = last_state == upstream.num_layers and upstream.final_norm
        unused = final and not transformer.layer_norm_first and not whole
        frozen = freeze_convolution and name.startswith("wav2vec2.feature_extractor.")
        if not (after or unused or frozen or name.startswith("wav2vec2.aux")):
            chosen[name] = weight.requires_grad_(True)
    return chosen


def build_tuned_optimizer(
    args: argparse.Namespace, model: nn.Module
) -> torch.optim.Optimizer:
    """Build the optimizer of a head and of an upstream that trains with it.

    The head's group has ``optim_conf``; LoRA experts with routers, and the backbone,
    have what ``upstream_optim_conf`` changes of it. The frontend counts the updates.

    Raises:
        RecipeError: An option that knows one group of parameters only, or another
            group in ``upstream_optim_conf``.
    """
    for name in ("sharded_ddp", "exclude_weight_decay"):
        if getattr(args, name, False):
            raise RecipeError(
                f"{name}: found true, expected false where the upstream trains, whose "
                "parameters are groups of their own"
            )
    conf = args.upstream_optim_conf
    for name in conf.keys() - {*_GROUPS}:
        raise RecipeError(
            f"upstream_optim_conf: found {name!r}, expected {' and '.join(_GROUPS)}"
        )
    frontend = model.frontend
    kinds = adapter_kinds(frontend.upstream)
    parts: dict[str, list[nn.Parameter]] = {"head": [], "experts": [], "backbone": []}
    tuned = {id(weight) for weight in frontend.tuned.values()}
    for weight in model.parameters():
        if id(weight) in tuned:
            parts["experts" if weight in kinds else "backbone"].append(weight)
        elif weight.requires_grad:
            parts["head"].append(weight)
    names = [name for name, weights in parts.items() if weights]
    groups = [{"params": parts[name], **(conf.get(name) or {})} for name in names]
    optimizer = optim_classes[args.optim](groups, **args.optim_conf)
    optimizer.register_step_post_hook(lambda *_: frontend.count_update())
    rates = [group["lr"] for group in optimizer.param_groups]
    _scale_peak(args.scheduler_conf, rates)
    for name, group in zip(names, optimizer.param_groups, strict=True):
        size = sum(weight.numel() for weight in group["params"])
        logging.info("%s: %d parameters train, lr %g", name, size, group["lr"])
    logging.info(
        "upstream: tune %s, frozen for the first %d updates",
        frontend.tune,
        frontend.freeze_encoder_steps,
    )
    return optimizer


def _scale_peak(conf: dict[str, Any], rates: list[float]) -> None:
    """Give each group its own peak where a schedule names one, in place."""
    peak = conf.get("max_lr")
    if isinstance(peak, int | float):
        conf["max_lr"] = [peak * rate / rates[0] for rate in rates]
