"""Hugging Face directories of every family, both ways, without transformers."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchaudio.models import Wav2Vec2Model

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.convert.architecture import ARGUMENTS, DROPOUTS, PLAIN
from espnet2_lamer.convert.families import ADDED, FAMILIES, family_of
from espnet2_lamer.convert.state import renamed
from espnet2_lamer.errors import RecipeError, short_reason
from espnet2_lamer.fileio.atomic import atomic_dir
from espnet2_lamer.fileio.foreign import check_weights

# Models with a head carry the network under its prefix, and heads beside it.
_PREFIX = f"({'|'.join(family.prefix for family in FAMILIES.values())})"
NAMES = (
    # Of fine-tuning: CTC, classification, speaker verification (which has a Linear of
    # the convolution stack's name), and the convolutions after the last block.
    (
        r"(lm_head|classifier|projector|tdnn|objective)\.|layer_weights$"
        rf"|feature_extractor\.(weight|bias)$|({_PREFIX}\.)?adapter\.",
        None,
    ),
    # Of pretraining: quantizer and contrastive loss, masked prediction.
    (r"(quantizer|project_q|project_hid|final_proj)\.|label_embs_concat$", None),
    (rf"({_PREFIX}\.)?feature_projection\.", "encoder.feature_projection."),
    (rf"({_PREFIX}\.)?encoder\.", "encoder.transformer."),
    (rf"{_PREFIX}\.", ""),
)
_THEIR_NAMES = (
    (r"encoder\.feature_projection\.", "feature_projection."),
    (r"encoder\.transformer\.", "encoder."),
)
MASK_EMBEDDING = "masked_spec_embed"
CONVOLUTIONS = ("conv_dim", "conv_kernel", "conv_stride")
#: In transformers' order; those that end in ``INDEX`` name the parts of a large model.
INDEX = ".index.json"
WEIGHT_FILES = (
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
)
# What transformers lets one choose, the only choice this network has, and the default.
_SETTINGS = (
    ("hidden_act", "gelu", "gelu"),
    ("feat_extract_activation", "gelu", "gelu"),
    ("layer_norm_eps", 1e-5, 1e-5),
    ("feat_proj_layer_norm", True, True),
    ("conv_pos_batch_norm", False, False),
)
# What another family calls an argument of HuBERT's, or has beside: key, its default.
_THEIR_KEYS: dict[str, dict[str, tuple[str, int]]] = {
    "data2vec-audio": {
        "encoder_pos_conv_kernel": ("conv_pos_kernel_size", 19),
        "encoder_pos_conv_depth": ("num_conv_pos_embeddings", 5),
    },
    "wavlm": {
        "encoder_num_buckets": ("num_buckets", 320),
        "encoder_max_distance": ("max_bucket_distance", 800),
    },
}
# What a family has no key for, since it has no choice.
_FIXED: dict[str, dict[str, Any]] = {
    "data2vec-audio": {
        "extractor_mode": "layer_norm",
        "encoder_layer_norm_first": False,
    },
}


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object; another value is refused."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: found {type(value).__name__}, expected an object")
    return value


def read_architecture(directory: Path) -> dict[str, Any]:
    """Translate ``config.json`` and ``preprocessor_config.json``."""
    return translate(read_json(directory / "config.json"), directory)


def read_dropouts(directory: Path) -> dict[str, Any]:
    """Return the dropouts of ``config.json``; 0.1 and 0 are transformers' defaults."""
    config = read_json(directory / "config.json")
    return {
        key: config.get(ARGUMENTS[key].huggingface, 0.0 if "proj" in key else 0.1)
        for key in DROPOUTS
    }


def translate(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Translate a ``config.json`` and the ``preprocessor_config.json`` beside it."""
    path = directory / "config.json"
    family = config.get("model_type")
    if family not in FAMILIES:
        raise RecipeError(
            f"{path}: model_type: found {family!r}, expected one of "
            f"{', '.join(map(repr, FAMILIES))}"
        )
    if config.get("adapter_attn_dim") is not None:
        raise RecipeError(
            f"{path}: adapter_attn_dim: found {config['adapter_attn_dim']!r}, a "
            "recogniser whose blocks hold the adapters of one language, expected null: "
            "without them its states are of no model that was trained; give the "
            "pretrained model, such as facebook/mms-1b or facebook/mms-300m"
        )
    for key, expected, default in _SETTINGS:
        found = config.get(key, default)
        if found != expected:
            raise RecipeError(
                f"{path}: {key}: found {found!r}, expected {expected!r}, the only one "
                "that a network of this package can have; give another base"
            )
    return _architecture(config, family, path) | {
        "normalize_waveform": _normalizes(directory)
    }


def _architecture(config: dict[str, Any], family: str, path: Path) -> dict[str, Any]:
    theirs, fixed = _THEIR_KEYS.get(family, {}), _FIXED.get(family, {})
    plain = [key for key in PLAIN if key not in theirs and key not in fixed]
    try:
        architecture = fixed | {
            key: config[ARGUMENTS[key].huggingface] for key in plain
        }
        architecture |= {ours: config.get(*key) for ours, key in theirs.items()}
        if family != ADDED["family"]:
            architecture["family"] = family
        if "extractor_mode" not in fixed:
            architecture["extractor_mode"] = f"{config['feat_extract_norm']}_norm"
        shapes = zip(*(config[key] for key in CONVOLUTIONS), strict=True)
        architecture["extractor_conv_layer_config"] = [list(shape) for shape in shapes]
    except KeyError as error:
        raise RecipeError(
            f"{path}: key {error} is missing; a {FAMILIES[family].title} configuration "
            "of transformers has it"
        ) from error
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"{path}: {', '.join(CONVOLUTIONS)}: expected lists of equal length "
            f"({error})"
        ) from error
    return architecture


def _normalizes(directory: Path) -> bool:
    """Whether the directory's feature extractor normalises waveforms."""
    prepared = (
        directory / "preprocessor_config.json",
        directory / "processor_config.json",
    )
    settings: dict[str, Any] = {}
    if prepared[0].is_file():
        settings = read_json(prepared[0])
    elif prepared[1].is_file():
        # transformers 5, of a model that was saved with its tokenizer.
        settings = read_json(prepared[1]).get("feature_extractor") or {}
    if not settings:
        logging.warning(
            "%s has no preprocessor_config.json: assuming do_normalize true, as "
            "transformers does",
            directory,
        )
    rate = settings.get("sampling_rate", SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        raise RecipeError(
            f"{directory}: sampling_rate: found {rate!r}, expected {SAMPLE_RATE}; give "
            "a model of 16 kHz speech"
        )
    return bool(settings.get("do_normalize", True))


def weights_file(directory: Path) -> Path:
    """The file whose SHA-256 identifies the checkpoint, or the index of several."""
    for name in WEIGHT_FILES:
        if (directory / name).is_file():
            return directory / name
    raise RecipeError(f"{directory}: found none of {', '.join(WEIGHT_FILES)}")


def weights_files(index: Path) -> list[Path]:
    """The files that an index of weights names, all beside it."""
    names = read_json(index).get("weight_map")
    names = names.values() if isinstance(names, dict) else [None]
    parts = [index.parent / name for name in sorted({*map(str, names)})]
    for part in parts:
        # Whoever wrote the index must not decide what is read elsewhere.
        if part.parent != index.parent or not part.is_file():
            raise RecipeError(
                f"{index}: weight_map: {part.name}: no such file beside it; fetch the "
                "whole model again"
            )
    return parts


def read_weights(directory: Path) -> Any:
    """Return the tensors of a directory."""
    path = weights_file(directory)
    if not path.name.endswith(INDEX):
        return _read_tensors(path)
    state: dict[str, Any] = {}
    for part in weights_files(path):
        tensors = _read_tensors(part)
        if twice := sorted(state.keys() & tensors.keys()):
            raise RecipeError(f"{part}: {twice[0]}: found in another part as well")
        state |= tensors
    return state


def _read_tensors(path: Path) -> Any:
    if path.suffix != ".safetensors":
        return check_weights(path, "cpu")
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:
        raise RecipeError(f"{path}: cannot be read ({short_reason(error)})") from error


def hugging_face_name(key: str) -> str:
    """Name of a tensor of torchaudio's model in a Hugging Face state dict."""
    return renamed(key, _THEIR_NAMES)


def model_config(architecture: dict[str, Any]) -> dict[str, Any]:
    """``config.json`` of the plain model of the architecture's family."""
    family = family_of(architecture)
    theirs, fixed = _THEIR_KEYS.get(family, {}), _FIXED.get(family, {})
    plain = [key for key in PLAIN if key not in theirs and key not in fixed]
    norm = architecture["extractor_mode"].removesuffix("_norm")
    layers = zip(*architecture["extractor_conv_layer_config"], strict=True)
    return {
        "architectures": [FAMILIES[family].model],
        "model_type": family,
        **({} if "extractor_mode" in fixed else {"feat_extract_norm": norm}),
        "feat_extract_activation": "gelu",
        **dict(zip(CONVOLUTIONS, layers, strict=True)),
        "num_feat_extract_layers": len(architecture["extractor_conv_layer_config"]),
        **{ARGUMENTS[key].huggingface: architecture[key] for key in plain},
        **{key: architecture[ours] for ours, (key, _) in theirs.items()},
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        # transformers would drop layers and mask spans in train() otherwise.
        "layerdrop": 0.0,
        "apply_spec_augment": False,
        **dict.fromkeys(("attention_dropout", "activation_dropout"), 0.0),
        **dict.fromkeys(("hidden_dropout", "feat_proj_dropout"), 0.0),
    }


def preprocessor_config(architecture: dict[str, Any]) -> dict[str, Any]:
    """``preprocessor_config.json`` of a plain model."""
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "do_normalize": architecture["normalize_waveform"],
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": architecture["extractor_mode"] == "layer_norm",
        "sampling_rate": SAMPLE_RATE,
    }


def write_directory(
    directory: str | Path,
    config: dict[str, Any],
    preprocessor: dict[str, Any],
    state: dict[str, Tensor],
    files: Mapping[str, str] | None = None,
) -> None:
    """Write what ``from_pretrained`` reads, whole or not at all.

    Tensors of ``state`` must not share memory; ``files`` are more texts, by file name.
    """
    from safetensors.torch import save_file

    values = {"config.json": config, "preprocessor_config.json": preprocessor}
    texts = {name: json.dumps(value, indent=1) + "\n" for name, value in values.items()}
    texts |= files or {}
    with atomic_dir(directory) as temporary:
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        weights = temporary / "model.safetensors"
        save_file(state, weights, metadata={"format": "pt"})
        # safetensors makes it readable by its owner only, whatever the umask.
        shutil.copymode(temporary / "config.json", weights)


def save_huggingface(
    model: Wav2Vec2Model, directory: str | Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write a directory that the family's own class in transformers loads."""
    state = {
        hugging_face_name(key): value.detach().to(dtype).contiguous()
        for key, value in model.state_dict().items()
    }
    if model.mask_embedding is not None:
        state[MASK_EMBEDDING] = model.mask_embedding.detach().to(dtype)
    write_directory(
        directory,
        model_config(model.architecture),
        preprocessor_config(model.architecture),
        state,
    )
