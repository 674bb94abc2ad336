"""The adapter file: what was trained beside a frozen base, in one safetensors file."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from espnet2_lamer import __version__
from espnet2_lamer.convert.architecture import LARGE, STRUCTURE
from espnet2_lamer.convert.espnet_experiment import read_config
from espnet2_lamer.convert.load import local_source, public_name, tensors_sha256
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.export.card import Origin
from espnet2_lamer.fileio.atomic import atomic_path
from espnet2_lamer.tasks.pretrained import (
    ADAPTER_SUFFIX,
    CENTROIDS,
    FORMAT,
    METADATA,
    content_digest,
    load_pretraining_model,
)

_ENCODER_KEYS = ("mask_prob", "mask_length", "final_norm", "gradient_checkpointing")


def write_adapter(
    experiment: Path,
    output: str | Path,
    origin: Origin,
    *,
    epoch_file: str | None = None,
    base: str | Path | None = None,
    base_name: str | None = None,
    codebook: str | Path | None = None,
) -> None:
    """Write experts, routers, head, buffers and codebook of a pretraining.

    Equal input gives equal bytes.

    Args:
        experiment: Its directory.
        output: The file.
        origin: For its metadata.
        epoch_file: Weights of the experiment; default is its best model.
        base: Where the base is now; default is ``encoder_conf.base``.
        base_name: Under which name others find the base, e.g. a Hugging Face id;
            by default what ``base`` tells, never a path of this machine.
        codebook: ``codebook.npz`` of the units.

    Raises:
        RecipeError: The experiment has no frozen base, or does not fit it.
    """
    from safetensors.torch import save

    from espnet2_lamer.asr.encoder.lamer_hubert import BASE_HASH, GUARD

    output = Path(output)
    if output.suffix != ADAPTER_SUFFIX:
        raise RecipeError(f"{output}: expected a name that ends in {ADAPTER_SUFFIX}")
    config = read_config(experiment)
    model = load_pretraining_model(experiment, base, epoch_file)
    encoder = model.encoder
    if not encoder.base_is_external:
        raise RecipeError(
            f"{experiment}: found a model without a frozen base, so there is nothing "
            "to leave out; pack it whole with --kind zoo --task ssl"
        )
    state = model.state_dict()
    for name in (BASE_HASH, GUARD):
        state.pop(f"encoder.{name}")
    tensors = {name: value.detach().contiguous() for name, value in state.items()}
    where = base or config["encoder_conf"]["base"]
    head = encoder.hubert_pretrain_model.logit_generator
    content: dict[str, Any] = {
        "name": origin.name or output.stem,
        "languages": list(origin.languages or getattr(model, "languages", ())),
        "license": origin.licence,
        "notes": list(origin.notes),
        "format": FORMAT,
        "espnet2_lamer": __version__,
        "base": {
            "name": base_name or public_name(str(where)),
            "sha256": encoder.base_hash,
            "tensors_sha256": tensors_sha256(local_source(where, fetch=False)),
            # Dropouts are the training's, not the base's.
            "architecture": encoder.architecture
            | {key: 0.0 for key in LARGE if key not in STRUCTURE},
        },
        "num_classes": encoder.num_classes,
        "encoder_conf": {
            "lamer": asdict(encoder.lamer),
            "final_dim": head.label_embeddings.shape[1],
            **{key: getattr(encoder, key) for key in _ENCODER_KEYS},
        },
        "model_conf": dict(config["model_conf"]),
        "codebook": None,
    }
    if codebook is not None:
        tensors[CENTROIDS], content["codebook"] = _read_codebook(codebook)
    content["sha256"] = content_digest(tensors, content)
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    with atomic_path(output) as temporary:
        temporary.write_bytes(save(tensors, metadata={METADATA: text}))


def _read_codebook(path: str | Path) -> tuple[Tensor, dict[str, Any]]:
    from espnet2_lamer.units.codebook import load_codebook

    codebook = load_codebook(path)
    teacher = public_name(str(codebook.metadata["teacher"]))
    metadata = {**codebook.metadata, "teacher": teacher, "sha256": codebook.sha256}
    return torch.from_numpy(codebook.centroids), metadata
