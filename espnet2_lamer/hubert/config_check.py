"""What the config of a pretraining describes, compared with its weights beforehand."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from espnet2_lamer.asr.encoder.lamer_hubert import GUARD, LamerHubertEncoder
from espnet2_lamer.convert.espnet_experiment import MASK_EMBEDDING, OURS
from espnet2_lamer.convert.load import read_architecture
from espnet2_lamer.convert.state import check_fit
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


def check_sizes(
    config: Mapping[str, Any], state: Mapping[str, Tensor], source: object
) -> None:
    """Compare the tensors that a :func:`checked_config` describes with the weights.

    The model is built without memory for its values, so a size that is wrong in the
    config costs nothing. The base's tensors may be among the weights or not.

    Raises:
        RecipeError: Tensors of other names, shapes or types, by name; values that no
            model has.
    """
    conf = dict(config["encoder_conf"])
    base = conf.pop("base", None)
    if base is not None:
        try:
            conf |= read_architecture(base)
        except RecipeError:
            return  # building fails at the base, and says so best
    with clear_errors(source):
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
