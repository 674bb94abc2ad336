"""Hugging Face HuBERT directories, in both directions, without importing transformers.

Key names differ from torchaudio's by prefixes only.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchaudio.models import Wav2Vec2Model

from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_dir

# Prefixes in a Hugging Face state dict -> prefixes in torchaudio's; order matters.
PREFIXES = (
    ("feature_extractor.", "feature_extractor."),
    ("feature_projection.", "encoder.feature_projection."),
    ("encoder.", "encoder.transformer."),
)
LEGACY_WEIGHT_NORM = {
    "conv.weight_g": "conv.parametrizations.weight.original0",
    "conv.weight_v": "conv.parametrizations.weight.original1",
}
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RecipeError(f"{path}: not valid JSON ({error})") from error


def read_architecture(directory: Path) -> dict[str, Any]:
    """Translate ``config.json`` and ``preprocessor_config.json``."""
    config = _read_json(directory / "config.json")
    if config.get("model_type") != "hubert":
        raise RecipeError(
            f"{directory / 'config.json'}: model_type: found "
            f"{config.get('model_type')!r}, expected 'hubert'"
        )
    for key in ("hidden_act", "feat_extract_activation"):
        if config.get(key, "gelu") != "gelu":
            raise RecipeError(
                f"{directory / 'config.json'}: {key}: found {config[key]!r}, expected "
                "'gelu', the only activation of HuBERT"
            )
    try:
        architecture = {
            "extractor_mode": f"{config['feat_extract_norm']}_norm",
            "extractor_conv_layer_config": [
                list(shape)
                for shape in zip(
                    config["conv_dim"],
                    config["conv_kernel"],
                    config["conv_stride"],
                    strict=True,
                )
            ],
            "extractor_conv_bias": config["conv_bias"],
            "encoder_embed_dim": config["hidden_size"],
            "encoder_pos_conv_kernel": config["num_conv_pos_embeddings"],
            "encoder_pos_conv_groups": config["num_conv_pos_embedding_groups"],
            "encoder_num_layers": config["num_hidden_layers"],
            "encoder_num_heads": config["num_attention_heads"],
            "encoder_ff_interm_features": config["intermediate_size"],
            "encoder_layer_norm_first": config["do_stable_layer_norm"],
        }
    except KeyError as error:
        raise RecipeError(
            f"{directory / 'config.json'}: key {error} is missing; a HuBERT "
            "configuration of transformers has it"
        ) from error
    preprocessor = directory / "preprocessor_config.json"
    if preprocessor.is_file():
        normalize = bool(_read_json(preprocessor).get("do_normalize", True))
    else:
        normalize = True
        logging.warning(
            "%s has no preprocessor_config.json: assuming do_normalize true, as "
            "transformers does",
            directory,
        )
    return architecture | {"normalize_waveform": normalize}


def _read_weights(directory: Path) -> dict[str, Tensor]:
    for name in WEIGHT_FILES:
        path = directory / name
        if not path.is_file():
            continue
        try:
            if name.endswith(".safetensors"):
                from safetensors.torch import load_file

                return load_file(path)
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise RecipeError(f"{path}: cannot be read ({error})") from error
    raise RecipeError(f"{directory}: found none of {', '.join(WEIGHT_FILES)}")


def weights_file(directory: Path) -> Path:
    """The file whose SHA-256 identifies the checkpoint."""
    for name in WEIGHT_FILES:
        if (directory / name).is_file():
            return directory / name
    raise RecipeError(f"{directory}: found none of {', '.join(WEIGHT_FILES)}")


def load_huggingface(directory: Path) -> Wav2Vec2Model:
    """Load a ``HubertModel`` directory; every key must match.

    Raises:
        RecipeError: A file is missing or damaged, or keys are missing or unexpected.
    """
    model = build_hubert(read_architecture(directory))
    state: dict[str, Tensor] = {}
    mask_embedding = None
    for key, value in _read_weights(directory).items():
        # Fine-tuned exports carry the backbone under "hubert.".
        key = key.removeprefix("hubert.")
        if key == "masked_spec_embed":
            mask_embedding = value.float()
            continue
        for legacy, current in LEGACY_WEIGHT_NORM.items():
            key = key.replace(legacy, current)
        for theirs, ours in PREFIXES:
            if key.startswith(theirs):
                key = ours + key[len(theirs) :]
                break
        state[key] = value.float()
    load_strictly(model, state, directory)
    model.mask_embedding = mask_embedding
    return model


def load_strictly(
    model: torch.nn.Module, state: dict[str, Tensor], source: object
) -> None:
    """``load_state_dict`` that names keys and shapes when anything differs.

    Raises:
        RecipeError: Missing, unexpected or wrongly shaped keys.
    """
    expected = model.state_dict()
    problems = [f"missing {key}" for key in sorted(set(expected) - set(state))]
    problems += [f"unexpected {key}" for key in sorted(set(state) - set(expected))]
    problems += [
        f"{key}: found shape {tuple(state[key].shape)}, expected "
        f"{tuple(expected[key].shape)}"
        for key in sorted(set(expected) & set(state))
        if expected[key].shape != state[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise RecipeError(
            f"{source}: the checkpoint does not fit the model: "
            + "; ".join(problems[:8])
            + more
        )
    model.load_state_dict(state)


def save_huggingface(
    model: Wav2Vec2Model, directory: str | Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write ``model`` as a directory that transformers' ``HubertModel`` loads.

    Args:
        model: Plain HuBERT from :func:`build_hubert` or :func:`load_hubert`.
        directory: Appears whole or not at all.
        dtype: Of the stored weights.
    """
    from safetensors.torch import save_file

    arch = model.architecture
    state = {}
    for key, value in model.state_dict().items():
        for theirs, ours in reversed(PREFIXES):
            if key.startswith(ours):
                key = theirs + key[len(ours) :]
                break
        state[key] = value.detach().to(dtype).contiguous()
    if model.mask_embedding is not None:
        state["masked_spec_embed"] = model.mask_embedding.detach().to(dtype)
    dims, kernels, strides = zip(*arch["extractor_conv_layer_config"], strict=True)
    config = {
        "architectures": ["HubertModel"],
        "model_type": "hubert",
        "feat_extract_norm": arch["extractor_mode"].removesuffix("_norm"),
        "feat_extract_activation": "gelu",
        "conv_dim": dims,
        "conv_kernel": kernels,
        "conv_stride": strides,
        "conv_bias": arch["extractor_conv_bias"],
        "num_feat_extract_layers": len(dims),
        "hidden_size": arch["encoder_embed_dim"],
        "hidden_act": "gelu",
        "num_conv_pos_embeddings": arch["encoder_pos_conv_kernel"],
        "num_conv_pos_embedding_groups": arch["encoder_pos_conv_groups"],
        "num_hidden_layers": arch["encoder_num_layers"],
        "num_attention_heads": arch["encoder_num_heads"],
        "intermediate_size": arch["encoder_ff_interm_features"],
        "do_stable_layer_norm": arch["encoder_layer_norm_first"],
        "layer_norm_eps": 1e-5,
        # transformers would drop layers and mask spans in train() otherwise.
        "layerdrop": 0.0,
        "apply_spec_augment": False,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "hidden_dropout": 0.0,
        "feat_proj_dropout": 0.0,
    }
    preprocessor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "do_normalize": arch["normalize_waveform"],
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": arch["extractor_mode"] == "layer_norm",
        "sampling_rate": 16000,
    }
    with atomic_dir(directory) as temporary:
        save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
        for name, value in (
            ("config.json", config),
            ("preprocessor_config.json", preprocessor),
        ):
            (temporary / name).write_text(json.dumps(value, indent=1) + "\n")
