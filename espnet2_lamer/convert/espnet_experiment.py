"""A plain HuBERT from an ESPnet experiment directory (``config.yaml``, ``.pth``)."""

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espnet2_lamer.convert.architecture import DROPOUTS, STRUCTURE
from espnet2_lamer.convert.families import ADDED
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.foreign import check_weights, clear_errors, read_yaml

CONFIG = "config.yaml"
STOCK, OURS = "torchaudio_hubert", "lamer_hubert"
HUBERT = "encoder.hubert_pretrain_model."
BACKBONE = f"{HUBERT}wav2vec2."
MASK_EMBEDDING = f"{HUBERT}mask_generator.mask_embedding"
NAMES = (
    # The masked-prediction head, and counters of a training.
    (rf"{re.escape(HUBERT)}logit_generator\.", None),
    (r"(encoder\.global_step|training_batches)$", None),
    (re.escape(BACKBONE), ""),
)


def model_file(
    experiment: Path, config: dict[str, Any], epoch_file: str | None = None
) -> Path:
    """Return a named file of an experiment, or what its own criterion calls best."""
    if epoch_file is not None:
        return experiment / epoch_file
    names = ["model.pth"]
    with clear_errors(f"{experiment / CONFIG}: best_model_criterion"):
        for phase, key, _ in config.get("best_model_criterion") or []:
            names += [f"{phase}.{key}.ave.pth", f"{phase}.{key}.best.pth"]
        names.append("latest.pth")
        for name in names:
            if (experiment / name).exists():
                return experiment / name
    raise RecipeError(
        f"{experiment}: found none of {', '.join(names)}; training has not finished "
        "an epoch"
    )


def read_config(experiment: Path) -> dict[str, Any]:
    """Read ``config.yaml``, a mapping."""
    return read_yaml(experiment / CONFIG)


def read_dropouts(experiment: Path) -> dict[str, Any]:
    """Return the dropouts of ``encoder_conf``, or its encoder's defaults."""
    config = read_config(experiment)
    defaults = dict.fromkeys(DROPOUTS, 0.0)
    if config.get("encoder") == STOCK:
        defaults = _stock_defaults(DROPOUTS)
    conf = config.get("encoder_conf") or {}
    return defaults | {key: conf[key] for key in DROPOUTS if key in conf}


def _stock_defaults(keys: Sequence[str]) -> dict[str, Any]:
    from espnet2.asr.encoder.hubert_encoder import TorchAudioHuBERTPretrainEncoder

    parameters = inspect.signature(TorchAudioHuBERTPretrainEncoder).parameters
    return {key: parameters[key].default for key in keys}


def read_architecture(experiment: Path) -> dict[str, Any]:
    """Translate ``encoder_conf`` of an experiment without experts.

    Where a base was trained as a whole there is ``base`` alone: the network is its.
    Preparations of the waveform that are not part of HuBERT are refused.
    """
    config, path = read_config(experiment), experiment / CONFIG
    encoder, conf = config.get("encoder"), config.get("encoder_conf") or {}
    if encoder not in (STOCK, OURS):
        raise RecipeError(
            f"{path}: encoder: found {encoder!r}, expected {STOCK!r} or {OURS!r}"
        )
    if not isinstance(conf, dict):
        raise RecipeError(f"{path}: encoder_conf: found {conf!r}, expected a mapping")
    if encoder == STOCK:
        found = {key: config.get(key) for key in ("normalize", "preencoder")}
        # With an input_size ESPnet leaves the frontend out.
        if config.get("input_size") is None:
            found["frontend"] = config.get("frontend")
        for key, value in found.items():
            if value is not None:
                raise RecipeError(
                    f"{path}: {key}: found {value!r}, expected null: HuBERT hears the "
                    "waveform as it is"
                )
        conf = _stock_defaults(STRUCTURE) | conf | {"normalize_waveform": False}
    elif conf.get("lamer") is not None:
        raise RecipeError(
            f"{path}: encoder_conf.lamer: found LoRA experts, expected a plain HuBERT; "
            "load it with espnet2_lamer.load_model, or write it whole with "
            "python -m espnet2_lamer.bin.export"
        )
    elif conf.get("base") is not None:
        return {"base": conf["base"]}
    # What ours leaves out, or sets to null, is HuBERT-Large's; build_hubert knows it.
    keys = (*STRUCTURE, *ADDED, "normalize_waveform")
    return {key: conf[key] for key in keys if conf.get(key) is not None}


def weights_file(experiment: Path) -> Path:
    """The file whose SHA-256 identifies the checkpoint."""
    return model_file(experiment, read_config(experiment))


def read_weights(experiment: Path) -> Any:
    """Return the tensors of a plain HuBERT's experiment, head and counters included."""
    return check_weights(weights_file(experiment), "cpu")
