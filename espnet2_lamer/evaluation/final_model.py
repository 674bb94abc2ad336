"""The end of a head's training: a waveform-in model that needs no other file."""

import argparse
import copy
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from espnet2_lamer.convert.state import read_state
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.tokens import BPE_MODEL, Vocabulary
from espnet2_lamer.fileio.atomic import atomic_dir, write_json
from espnet2_lamer.fileio.checksum import checked_file
from espnet2_lamer.fileio.foreign import read_yaml

# Options that say where a head was trained, not what it is: not in final/config.yaml.
_LOCAL_OPTIONS = {
    "config": None,
    "output_dir": None,
    "train_data_path_and_name_and_type": [],
    "valid_data_path_and_name_and_type": [],
    "train_shape_file": [],
    "valid_shape_file": [],
    "non_linguistic_symbols": None,
}


def write_final(
    output_dir: Path,
    upstream: torch.nn.Module,
    layer: int | str,
    vocabulary: Vocabulary,
    inputs: dict[str, Any],
) -> None:
    """Rewrite config and averaged checkpoint to ``frontend: lamer_upstream``.

    Args:
        output_dir: ESPnet experiment; gets ``final/{config.yaml,model.pth}`` and, for
            unit ``bpe``, ``final/bpe.model``.
        upstream: Its weights go in.
        layer: State index or ``"all"``.
        vocabulary: Of the head.
        inputs: Written to ``final/inputs.json``.

    Raises:
        RecipeError: Training left no averaged checkpoint, or one that does not fit.
    """
    averaged = output_dir / "valid.loss.ave.pth"
    if not averaged.is_file():
        raise RecipeError(
            f"{output_dir}: training wrote no {averaged.name}; read "
            f"{output_dir / 'train.log'}"
        )
    head = read_state(averaged)
    config = read_yaml(output_dir / "config.yaml")
    config |= _LOCAL_OPTIONS
    config["frontend"] = "lamer_upstream"
    config["frontend_conf"] = {
        "upstream_conf": upstream.architecture(),
        "layer": layer,
        "fs": 16000,
    }
    if vocabulary.bpe_model is not None:
        config["bpemodel"] = str(output_dir / "final" / BPE_MODEL)
    weights = {
        f"frontend.upstream.{key}": value.detach().cpu().clone()
        for key, value in upstream.state_dict().items()
    }
    weights |= head
    _check_loads(config, weights, output_dir)
    with atomic_dir(output_dir / "final") as directory:
        (directory / "config.yaml").write_text(
            yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
            encoding="utf-8",
        )
        with checked_file(directory / "model.pth") as stream:
            torch.save(weights, stream)
        if vocabulary.bpe_model is not None:
            shutil.copyfile(vocabulary.bpe_model, directory / BPE_MODEL)
        write_json(directory / "inputs.json", inputs)


def _check_loads(
    config: dict[str, Any], weights: dict[str, torch.Tensor], output_dir: Path
) -> None:
    from espnet2_lamer.tasks.asr import LamerASRTask

    model = LamerASRTask.build_model(argparse.Namespace(**copy.deepcopy(config)))
    result = model.load_state_dict(weights, strict=False)
    if result.missing_keys or result.unexpected_keys:
        raise RecipeError(
            f"{output_dir}: head and upstream do not make a whole model: missing "
            f"{result.missing_keys[:3]}, unexpected {result.unexpected_keys[:3]}; "
            "remove the directory and train again"
        )
