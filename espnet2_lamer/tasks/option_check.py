"""Refuse a wrong option by name, before anything is built or read."""

import argparse
import difflib
import inspect
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, get_type_hints

import torch
from espnet2.hubert.espnet_model import TorchAudioHubertPretrainModel
from espnet2.tasks.abs_task import optim_classes, scheduler_classes
from espnet2.tasks.hubert import encoder_choices, model_choices
from typeguard import TypeCheckError, check_type

from espnet2_lamer.constants import RECEPTIVE_FIELD
from espnet2_lamer.convert.architecture import LARGE
from espnet2_lamer.errors import RecipeError, require
from espnet2_lamer.fileio.foreign import check_weights
from espnet2_lamer.layers import LamerConfig
from espnet2_lamer.layers.config import check_values
from espnet2_lamer.train.batching import CollateOptions
from espnet2_lamer.train.memory import read_device_bins

# What the task itself passes to the constructors.
_ESPNETS = inspect.signature(TorchAudioHubertPretrainModel).parameters
_GIVEN = {
    "encoder_conf": {"num_classes", "input_size"},
    "model_conf": {"amp_dtype", *_ESPNETS},
    "optim_conf": {"params"},
    "scheduler_conf": {"optimizer"},
}
_POSITIVE = math.nextafter(0.0, 1.0)
# Options by smallest and largest value; ESPnet and torch check none of these.
_RANGES = {
    (1, math.inf): """num_classes accum_grad batch_bins valid_batch_bins max_epoch
        num_iters_per_epoch sanity_updates encoder_conf.mask_length
        encoder_conf.final_dim collate_fn_conf.bucket_samples""",
    (
        0,
        math.inf,
    ): """update_bins feature_cache_gb monitor_utts model_conf.balance_weight
        model_conf.unmasked_weight model_conf.feature_penalty
        model_conf.distill_weight""",
    (RECEPTIVE_FIELD, math.inf): "collate_fn_conf.max_sample_size",
    (_POSITIVE, math.inf): "grad_clip model_conf.logit_temp",
    (_POSITIVE, 1.0): "encoder_conf.mask_prob",
    (0, 1.0): " ".join(f"encoder_conf.{key}" for key in LARGE if "drop" in key),
}


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check keys, types, choices and ranges of what the task's parser parsed.

    ESPnet takes any value from a YAML file and passes unknown keys on, to fail with a
    traceback after the model is built, or not at all.

    Raises:
        RecipeError: With the key, the value found and what is expected.
    """
    try:
        _check_top_level(parser, args)
        classes = {
            "encoder_conf": encoder_choices.get_class(args.encoder),
            "model_conf": model_choices.get_class(args.model),
            "optim_conf": optim_classes[args.optim],
        }
        if args.scheduler is not None:
            classes["scheduler_conf"] = scheduler_classes[args.scheduler]
        classes["collate_fn_conf"] = CollateOptions
        for name, constructor in classes.items():
            _check_keywords(name, getattr(args, name), constructor)
        lamer = args.encoder_conf.get("lamer")
        if lamer is not None:
            _check_keywords("encoder_conf.lamer", lamer, LamerConfig)
            LamerConfig(**lamer)
        _check_ranges(args)
    except ValueError as error:
        raise RecipeError(f"{args.config or 'options'}: {error}") from error


def check_packages(args: argparse.Namespace) -> None:
    """Refuse options whose packages are not installed (``RecipeError``)."""
    if args.use_tensorboard:
        require("tensorboard", "use_tensorboard (false does without)")


def check_init_param(args: argparse.Namespace) -> None:
    """Refuse files of ``init_param`` that hold more than tensors (``RecipeError``)."""
    for entry in args.init_param or []:
        try:
            file = str(entry).partition(":")[0]  # of FILE:SOURCE:TARGET:EXCLUDED
            state = check_weights(file)
            tensors = isinstance(state, Mapping) and all(
                isinstance(value, torch.Tensor) for value in state.values()
            )
            if not tensors:
                raise RecipeError(f"{file}: expected a state dict of tensors")
        except RecipeError as error:
            raise RecipeError(f"init_param: {error}") from error


def _check_keywords(name: str, values: Any, constructor: type) -> None:
    """Check that ``constructor(**values)`` names and types its arguments rightly.

    The signature is the schema; the caller provides the arguments in ``_GIVEN``. A
    list, from YAML, may stand for a tuple.
    """
    right, given = isinstance(values, Mapping), _GIVEN.get(name, set())
    check_values("", (name, values, right, "'key: value' lines"))
    parameters = inspect.signature(constructor).parameters
    kinds = {p.kind for p in parameters.values()}
    known = {key for key, p in parameters.items() if p.kind != p.VAR_KEYWORD} - given
    for key in values:
        if key not in known and inspect.Parameter.VAR_KEYWORD not in kinds:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise RecipeError(
                f"{name}.{key}: unknown key, expected some of "
                f"{', '.join(sorted(known))}{hint}"
            )
    try:
        hints = get_type_hints(constructor.__init__)
    except NameError:
        # Some of torch's schedules name types that only type checkers import.
        hints = {}
    for key, value in values.items():
        if key in hints and not _fits(value, hints[key]):
            raise RecipeError(_wrong_type(f"{name}.{key}", value, hints[key]))


def _fits(value: Any, hint: Any) -> bool:
    for form in [value, tuple(value)] if isinstance(value, list) else [value]:
        with suppress(TypeCheckError):
            check_type(form, hint)
            return True
    return False


def _wrong_type(key: str, value: Any, expected: Any) -> str:
    kind = expected.__name__ if inspect.isclass(expected) else str(expected)
    hint = ""
    if isinstance(value, str):
        with suppress(ValueError):
            # YAML 1.1 wants a point in the mantissa: 1e-6 is text, 1.0e-06 a number.
            number = float(value)
            plain = repr(number)
            plain = f"{number:.1e}" if "e" in plain and "." not in plain else plain
            hint = f"; YAML takes it for text: write {plain}"
    return f"{key}: found {value!r}, expected {kind}{hint}"


def _check_top_level(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        single = isinstance(action, argparse._StoreAction) and action.nargs is None
        if value is None or not single:
            continue
        choices = action.choices or [value]
        allowed = f"one of {', '.join(map(str, choices))}"
        check_values("", (action.dest, value, value in choices, allowed))
        if action.type in (int, float) and not _fits(value, action.type):
            raise RecipeError(_wrong_type(action.dest, value, action.type))


def _check_ranges(args: argparse.Namespace) -> None:
    if args.num_classes is None:
        raise RecipeError(
            "num_classes: found none, expected the number of units K; give "
            "--num_classes, 1000 in conf/presets/paper.sh"
        )
    for (low, high), keys in _RANGES.items():
        above = "above 0" if low == _POSITIVE else f"{low} or more"
        expected = above if high == math.inf else f"{above} and at most {high:g}"
        for key in keys.split():
            section, _, name = key.rpartition(".")
            value = (getattr(args, section) if section else vars(args)).get(name)
            right = isinstance(value, int | float) and low <= value <= high
            check_values("", (key, value, value is None or right, expected))
    read_device_bins(args.device_bins)
    if args.feature_cache_gb:
        for key in ("preprocessor_conf", "rir_scp", "noise_scp"):
            value = vars(args).get(key)
            alike = "nothing: with feature_cache_gb audio is the same in every epoch"
            check_values("", (key, value, not value, alike))
    if args.update_bins:
        follows = "1: with update_bins it follows from device_bins"
        check_values("", ("accum_grad", args.accum_grad, args.accum_grad == 1, follows))
    batches = args.num_iters_per_epoch
    right = batches is None or args.accum_grad <= batches
    most = f"at most num_iters_per_epoch ({batches}): an epoch would make no update"
    check_values("", ("accum_grad", args.accum_grad, right, most))
