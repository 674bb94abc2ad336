"""HuBERT by the name of a torchaudio bundle, such as ``HUBERT_LARGE``."""

from pathlib import Path
from typing import Any

import torch
import torchaudio

from espnet2_lamer.convert.architecture import STRUCTURE
from espnet2_lamer.errors import RecipeError, short_reason

PREFIX = "torchaudio:"
# torchaudio publishes no mask embedding.
NAMES, MASK_EMBEDDING = (), None


def bundle_names() -> list[str]:
    """Names of the pretrained HuBERTs; those fine-tuned for ASR are left out."""
    names = [name for name in dir(torchaudio.pipelines) if name.startswith("HUBERT_")]
    return [name for name in names if not name.startswith("HUBERT_ASR_")]


def _find(name: str) -> Any:
    if name not in bundle_names():
        raise RecipeError(
            f"{name}: no pretrained HuBERT of torchaudio has this name, expected one "
            f"of {', '.join(bundle_names())}"
        )
    return getattr(torchaudio.pipelines, name)


def read_architecture(name: str) -> dict[str, Any]:
    """Translate what torchaudio knows of the bundle; nothing is fetched."""
    bundle = _find(name)
    architecture = {key: bundle._params[key] for key in STRUCTURE}
    architecture["extractor_conv_layer_config"] = [
        list(layer) for layer in architecture["extractor_conv_layer_config"]
    ]
    return architecture | {"normalize_waveform": bundle._normalize_waveform}


def _cached(name: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(_find(name)._path).name


def weights_file(name: str, fetch: bool = True) -> Path:
    """The file in torch's cache whose SHA-256 identifies the checkpoint.

    Without ``fetch`` it must be there already.
    """
    path = _cached(name)
    if not path.is_file():
        if not fetch:
            raise RecipeError(f"{name}: {path} not found")
        _read(name, "meta")
    return path


def _read(name: str, map_location: str) -> Any:
    bundle = _find(name)
    options = {"map_location": map_location, "weights_only": True}
    try:
        return bundle._get_state_dict(options)
    except Exception as error:
        path = _cached(name)
        problem = "cannot be read" if path.is_file() else "cannot be fetched"
        raise RecipeError(
            f"{name}: {path}: {problem} ({short_reason(error)})"
        ) from error


def read_weights(name: str) -> Any:
    """Return the tensors of a bundle, which is fetched once."""
    return _read(name, "cpu")
