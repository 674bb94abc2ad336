"""Sequential expansion: go on from a trained mixture with more experts."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espnet2_lamer.asr.encoder.lamer_hubert import BASE_HASH
from espnet2_lamer.asr.frozen_base import digest_hex
from espnet2_lamer.convert.espnet_experiment import model_file, read_config
from espnet2_lamer.convert.state import read_state
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers import (
    LamerConfig,
    LamerFeedForward,
    parse_allocation,
    parse_ranks,
)
from espnet2_lamer.layers.experts import LoRAExperts

OLD_EXPERTS = ("frozen", "shared")
_LAYER = "encoder.hubert_pretrain_model.wav2vec2.encoder.transformer.layers"


@dataclass(frozen=True)
class _Kept:
    """Values of old experts: the first ones along ``dim`` of a parameter."""

    parameter: nn.Parameter
    dim: int
    values: Tensor

    def old(self, tensor: Tensor) -> Tensor:
        return tensor.narrow(self.dim, 0, self.values.shape[self.dim])

    def without_old(self, grad: Tensor) -> Tensor:
        grad = grad.clone()
        self.old(grad).zero_()
        return grad

    @torch.no_grad()
    def put_back(self, *_: Any) -> None:
        self.old(self.parameter).copy_(self.values)


def expand_experts(model: nn.Module, experiment: str | Path) -> list[_Kept]:
    """Give a new model the experts of an earlier experiment, as its first ones.

    In a layer with :math:`N_{old}` experts then and N now, experts 1 to
    :math:`N_{old}` get the earlier A, B and router rows; the others start as always,
    B zero and router rows at random. The unit head is new: its units may be others.
    With no new expert in any layer this only goes on from the old weights. Top-K over
    more experts may leave an old one out, so with random rows the model does not start
    exactly where the earlier one stopped. Returns what :func:`keep_old_experts` needs.

    Raises:
        RecipeError: Base or experts' settings differ, or a layer has fewer experts.
    """
    experiment = Path(experiment)
    if not any(isinstance(module, LamerFeedForward) for module in model.modules()):
        logging.info("expand_from: no layer has experts, none are taken over")
        return []
    config = read_config(experiment)
    try:
        state = read_state(model_file(experiment, config))
    except RecipeError as error:
        raise RecipeError(f"expand_from: {error}") from error
    layers = model.encoder.wav2vec2.encoder.transformer.layers
    before = _same_settings(model, experiment, config, state)
    counts = parse_allocation(before.allocation, len(layers))
    kept: list[_Kept] = []
    for index, (layer, old) in enumerate(zip(layers, counts, strict=True)):
        if not old:
            continue
        prefix = f"{_LAYER}.{index}.feed_forward."
        module = layer.feed_forward
        now = module.num_experts if isinstance(module, LamerFeedForward) else 0
        if now < old:
            raise RecipeError(
                f"expand_from: {experiment} has {old} experts in layer {index + 1}, "
                f"found {now} in encoder_conf.lamer.allocation; expected as many or "
                "more"
            )
        for name, child in module.named_children():
            if isinstance(child, LoRAExperts):
                a, b = state[f"{prefix}{name}.lora_A"], state[f"{prefix}{name}.lora_B"]
                kept.append(_put(child.lora_A, 0, a))
                kept.append(_put(child.lora_B, 1, b))
        for name, router in module.routers.items():
            for part in ("weight", "selection_bias"):
                value = state.get(f"{prefix}routers.{name}.{part}")
                target = getattr(router, part)
                if value is not None and target is not None:
                    _put(target, 0, value)
    numbers = ",".join(map(str, counts))
    logging.info(f"expand_from: {experiment} gives the first {numbers} experts a layer")
    return kept


def keep_old_experts(kept: list[_Kept], optimizer: torch.optim.Optimizer) -> None:
    """Leave old experts as they are: no gradient, and no weight decay either.

    A and B of all experts of a layer are one parameter each, so after every update the
    old part is put back, which is exact whatever the optimizer does.
    """
    for part in kept:
        part.parameter.register_hook(part.without_old)
        optimizer.register_step_post_hook(part.put_back)


def _put(target: Tensor, dim: int, value: Tensor) -> _Kept:
    kept = _Kept(target, dim, value.to(target.device, target.dtype))
    kept.put_back()
    return kept


def _same_settings(
    model: nn.Module,
    experiment: Path,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
) -> LamerConfig:
    lamer = (config.get("encoder_conf") or {}).get("lamer")
    own = model.encoder.lamer
    if lamer is None:
        raise RecipeError(
            f"expand_from: {experiment} has no experts (encoder_conf.lamer), expected "
            "a mixture of them"
        )
    before = LamerConfig(**lamer)
    same = {
        f"encoder_conf.lamer.{key}": (getattr(before, key), getattr(own, key))
        for key in ("rank", "alpha", "targets", "router", "merge")
    }
    # One number, and that number for every layer, are the same.
    count = len(model.encoder.wav2vec2.encoder.transformer.layers)
    if parse_ranks(before.rank, count) == parse_ranks(own.rank, count):
        same.pop("encoder_conf.lamer.rank")
    digest = digest_hex(state.get(f"encoder.{BASE_HASH}"))
    same["a base with SHA-256"] = digest, model.encoder.base_hash
    for what, (then, now) in same.items():
        if then != now:
            raise RecipeError(
                f"expand_from: {experiment} has {what} {then!r}, found {now!r} here; "
                "expected the same"
            )
    return before
