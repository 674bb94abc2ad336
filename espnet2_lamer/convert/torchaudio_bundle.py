"""HuBERT by the name of a torchaudio bundle, such as ``HUBERT_LARGE``."""

from pathlib import Path
from typing import Any

import torch
import torchaudio

from espnet2_lamer.convert.architecture import DROPOUTS, STRUCTURE
from espnet2_lamer.errors import RecipeError, short_reason
from espnet2_lamer.fileio.foreign import check_weights

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


def read_dropouts(name: str) -> dict[str, Any]:
    """Return the dropouts that torchaudio builds the bundle with."""
    return {key: _find(name)._params[key] for key in DROPOUTS}


def weights_file(name: str, fetch: bool = True) -> Path:
    """The file in torch's cache whose SHA-256 identifies the checkpoint.

    Without ``fetch`` it must be there already.
    """
    bundle = _find(name)
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(bundle._path).name
    if not path.is_file():
        if not fetch:
            raise RecipeError(f"{name}: {path} not found")
        try:
            bundle._get_state_dict({"map_location": "meta", "weights_only": True})
        except Exception as error:
            reason = f"cannot be fetched ({short_reason(error)})"
            raise RecipeError(f"{name}: {path}: {reason}") from error
    return path


def read_weights(name: str) -> Any:
    """Return the tensors of a bundle, which is fetched once."""
    return check_weights(weights_file(name), "cpu")
