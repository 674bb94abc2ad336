"""A pretraining experiment's model, rebuilt from its checked config and weights."""

import argparse
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espnet2_lamer.asr.encoder.lamer_hubert import GUARD, LamerHubertEncoder
from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.convert.espnet_experiment import (
    MASK_EMBEDDING,
    OURS,
    model_file,
    read_config,
)
from espnet2_lamer.convert.load import local_source, read_architecture
from espnet2_lamer.convert.state import check_fit, read_state
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.foreign import clear_errors
from espnet2_lamer.layers.config import check_values

MAX_CLASSES = 2**20


def checked_config(config: Mapping[str, Any], source: object) -> dict[str, Any]:
    """Return a copy of a pretraining's ``config.yaml`` whose outer form is right.

    Raises:
        RecipeError: It is of another model, or a value is of the wrong kind.
    """
    classes, tokens = config.get("num_classes"), config.get("token_list")
    encoder, outer, inner = map(config.get, ("encoder", "encoder_conf", "model_conf"))
    enough = isinstance(classes, int) and 0 < classes <= MAX_CLASSES
    table = [
        ("encoder", encoder, encoder == OURS, repr(OURS)),
        ("encoder_conf", outer, isinstance(outer, dict), "a mapping"),
        ("model_conf", inner, isinstance(inner, dict), "a mapping"),
        # A name would be read as a file.
        ("token_list", tokens, isinstance(tokens, list), "the list of units"),
        ("num_classes", classes, enough, f"1 to {MAX_CLASSES} units"),
    ]
    check_values(f"{source}: ", table)
    return deepcopy(dict(config)) | {"encoder": OURS, "model": "lamer"}


def _check_sizes(
    config: Mapping[str, Any], state: Mapping[str, Tensor], source: object
) -> None:
    """Compare the tensors that a :func:`checked_config` describes with the weights.

    The model is built without memory for its values, so a size that is wrong in the
    config costs nothing. The base's tensors may be among the weights or not.
    """
    conf = dict(config["encoder_conf"])
    base = conf.pop("base", None)
    if base is not None:
        try:
            conf |= read_architecture(base)
        except RecipeError:
            return  # building fails at the base, and says so best
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        encoder = LamerHubertEncoder(num_classes=config["num_classes"], **conf)
    planned = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    trained = {
        f"encoder.{key}" for key, p in encoder.named_parameters() if p.requires_grad
    }
    # A base brings its own mask embedding; else it is one that trains.
    expected = {
        key: value
        for key, value in planned.items()
        if key in state or key in trained - {MASK_EMBEDDING}
    }
    if isinstance(guard := state.get(f"encoder.{GUARD}"), Tensor) and not guard.numel():
        expected.pop(f"encoder.{GUARD}", None)
    found = {key: state[key] for key in expected if key in state}
    if missing := sorted(expected.keys() - found.keys()):
        raise RecipeError(
            f"{source}: the checkpoint lacks {len(missing)} tensors of the encoder, "
            f"e.g. {missing[0]}; encoder_conf is not the one it was trained with"
        )
    for key, value in found.items():
        if value.dtype != planned[key].dtype or value.layout is not torch.strided:
            raise RecipeError(
                f"{source}: {key}: found {value.dtype} ({value.layout}) in the "
                f"weights, expected {planned[key].dtype}"
            )
    check_fit(expected, found, source)


def load_pretraining_model(
    experiment: Path, base: str | Path | None = None, epoch_file: str | None = None
):
    """Rebuild the whole ESPnet model (head included) of a pretraining experiment.

    ``base`` overrides ``encoder_conf.base``; the weights are those of ``epoch_file``,
    by default of its best model. It is a ``LamerHubertPretrainModel`` in eval mode.

    Raises:
        RecipeError: The config is not of this kind, or weights do not fit.
    """
    source = experiment / "config.yaml"
    config = checked_config(read_config(experiment), source)
    given = epoch_file and experiment / epoch_file
    state = read_state(given or model_file(experiment, config))
    return restore_pretraining_model(config, state, base, source)


def _base_here(named: Any, source: Path) -> str:
    """Find the base that a config names; it does not decide that one is fetched."""
    try:
        return local_source(named, fetch=False)
    except RecipeError as error:
        raise RecipeError(
            f"{source}: encoder_conf.base: {error}. Name the base's new place, or its "
            "id to fetch it: the argument base of espnet2_lamer.load_model, --base of "
            "commands; a file does not decide what is fetched"
        ) from error


def restore_pretraining_model(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    base: str | Path | None,
    source: Path,
):
    """Build the ESPnet model that a ``config.yaml`` describes, and fill it.

    Nothing is allocated before the config's sizes are known to be those of the
    weights. ``base`` overrides ``encoder_conf.base``, messages name ``source``; the
    model is in eval mode.

    Raises:
        RecipeError: As :func:`load_pretraining_model`.
    """
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    config = checked_config(config, source)
    conf = config["encoder_conf"]
    with clear_errors(source):
        if base is not None:
            conf["base"] = str(base)
        elif conf.get("base") is not None:
            conf["base"] = _base_here(conf["base"], source)
        _check_sizes(config, state, source)
        model = LamerHubertTask.build_model(argparse.Namespace(**config))
        model.load_state_dict(dict(state))
    return model.eval()


def load_experiment(
    experiment: Path, base: str | Path | None = None, epoch_file: str | None = None
) -> Upstream:
    """Load the encoder of a pretraining experiment as an :class:`Upstream`."""
    return as_upstream(load_pretraining_model(experiment, base, epoch_file))


def as_upstream(model: nn.Module) -> Upstream:
    """Keep a pretraining model's encoder alone, as a frozen extractor."""
    encoder = model.encoder
    lamer = None
    if encoder.lamer is not None:
        lamer = asdict(encoder.lamer)
        lamer["targets"] = list(lamer["targets"])
    # transformers keeps it with the backbone.
    mask = encoder.hubert_pretrain_model.mask_generator.mask_embedding
    encoder.wav2vec2.mask_embedding = mask.detach()
    return Upstream(encoder.wav2vec2, lamer, encoder.final_norm)
