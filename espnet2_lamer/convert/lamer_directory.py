"""A directory of ``bin.export --kind hf`` with experts, read back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torchaudio.models import Wav2Vec2Model

from espnet2_lamer.convert import huggingface
from espnet2_lamer.convert.state import fill_hubert
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.foreign import clear_errors
from espnet2_lamer.layers import LamerConfig, add_lamer

MODEL_TYPE = "lamer_hubert"


def holds_experts(directory: Path) -> bool:
    """Whether a directory is a ``LamerHubertModel``, by its ``config.json``."""
    path = directory / "config.json"
    return path.is_file() and huggingface.read_json(path).get("model_type") == (
        MODEL_TYPE
    )


def languages_of(directory: Path) -> tuple[str, ...]:
    """Return the languages that the ``config.json`` of an export names, or none."""
    path = directory / "config.json"
    config = huggingface.read_json(path) if path.is_file() else {}
    dense = config.get("lamer_dense")
    one = dense.get("language") if isinstance(dense, Mapping) else None
    found = config.get("languages", [one] if one else [])
    if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
        raise RecipeError(
            f"{path}: languages: found {str(found)[:80]}, expected a list of ISO 639-3 "
            "codes"
        )
    return tuple(sorted(found))


def read_lamer_directory(
    directory: Path,
) -> tuple[Wav2Vec2Model, dict[str, Any], bool]:
    """Return the network with its experts, their options, and ``final_norm``.

    The code in the directory is not looked at: this package has the same network.

    Raises:
        RecipeError: Options that no model has, or tensors that do not fit them.
    """
    path = directory / "config.json"
    with clear_errors(directory):
        config = huggingface.read_json(path)
        plain = config | {"model_type": "hubert", "hidden_act": "gelu"}
        architecture = huggingface.translate(plain, directory)
        try:
            options = {
                "allocation": config["num_experts"],
                "rank": config["lora_rank"],
                "alpha": config["lora_alpha"],
                "top_k": config["num_experts_per_tok"],
                "targets": config["lora_targets"],
                "router": config["lora_router"],
                # Earlier exports do not name it.
                "merge": config.get("lora_merge", "none"),
                # How a training balances the load, this file does not say.
                "balance": "bias" if config["use_selection_bias"] else "none",
            }
            final_norm = bool(config["final_norm"])
        except KeyError as error:
            raise RecipeError(
                f"{path}: key {error} is missing; bin.export --kind hf writes it"
            ) from error
        if len(options["allocation"]) != architecture["encoder_num_layers"]:
            raise RecipeError(
                f"{path}: num_experts: found {len(options['allocation'])} numbers, "
                f"expected {architecture['encoder_num_layers']}, one for each layer"
            )
        lamer = LamerConfig(**options)
        state = dict(huggingface.read_weights(directory))
        for name in [name for name in state if name.endswith(".selection_bias")]:
            count = state[name].numel()
            load = name.removesuffix("selection_bias") + "load"
            # Of the last training batch: not written, not used here.
            state[load] = torch.full((count,), 1.0 / count)
        model = fill_hubert(
            architecture,
            state,
            huggingface.NAMES,
            huggingface.MASK_EMBEDDING,
            huggingface.weights_file(directory),
            lambda model: add_lamer(model, lamer),
        )
    return model.eval(), options, final_norm
