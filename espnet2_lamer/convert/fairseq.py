"""HuBERT checkpoints of fairseq (``.pt``), without fairseq or omegaconf."""

import re
from pathlib import Path
from typing import Any

from torchaudio.models import Wav2Vec2Model

from espnet2_lamer.convert.fairseq_config import (
    FINE_TUNED,
    find_sections,
    hubert_architecture,
)
from espnet2_lamer.convert.inert_pickle import load_inert
from espnet2_lamer.convert.state import fill_hubert, rename
from espnet2_lamer.errors import RecipeError

MASK_EMBEDDING = "mask_emb"
# Masked prediction, which is trained anew for other units.
HEAD = re.compile(r"(final_proj|target_glu)\..+|label_embs_concat")
# A convolution block is [conv, dropout, norm, GELU]; a LayerNorm, which Large has in
# place of the GroupNorm, sits between two transposes.
CONV = re.compile(r"feature_extractor\.conv_layers\.(\d+)\.(0|2|2\.1)\.(weight|bias)")
CONV_PARTS = {"0": "conv", "2": "layer_norm", "2.1": "layer_norm"}
LAYER = re.compile(r"encoder\.layers\.(\d+)\.([a-z_0-9]+)\.(.+)")
LAYER_PARTS = {
    "self_attn": "attention",
    "self_attn_layer_norm": "layer_norm",
    "fc1": "feed_forward.intermediate_dense",
    "fc2": "feed_forward.output_dense",
}
PREFIXES = {
    "post_extract_proj.": "encoder.feature_projection.projection.",
    "layer_norm.": "encoder.feature_projection.layer_norm.",
    "encoder.pos_conv.0.": "encoder.transformer.pos_conv_embed.conv.",
    "encoder.layer_norm.": "encoder.transformer.layer_norm.",
}


def torchaudio_name(key: str) -> str | None:
    """Translate a parameter's name; ``None`` for the masked-prediction head."""
    if HEAD.fullmatch(key):
        return None
    if match := CONV.fullmatch(key):
        layer, part, name = match.groups()
        return f"feature_extractor.conv_layers.{layer}.{CONV_PARTS[part]}.{name}"
    if match := LAYER.fullmatch(key):
        layer, part, name = match.groups()
        part = LAYER_PARTS.get(part, part)
        return f"encoder.transformer.layers.{layer}.{part}.{name}"
    for theirs, ours in PREFIXES.items():
        if key.startswith(theirs):
            return ours + key[len(theirs) :]
    return key


def _read(path: Path, tensors: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    state = load_inert(path, tensors)
    model, task, key = find_sections(state, path)
    weights = state[key]
    # A fine-tuned model holds the pretrained one's configuration and network inside.
    if any("w2v_model." in str(name) for name in weights):
        raise RecipeError(f"{path}: {FINE_TUNED}")
    return hubert_architecture(model, task), weights


def read_architecture(path: Path) -> dict[str, Any]:
    """Translate the configuration in the file; weights are not read.

    Raises:
        RecipeError: Damaged, not a HuBERT, or fine-tuned.
    """
    return _read(path, tensors=False)[0]


def load(path: Path) -> Wav2Vec2Model:
    """Load a pretrained HuBERT; every tensor outside of its head must match.

    Besides fairseq's own files this reads those of S3PRL's converter.

    Raises:
        RecipeError: Damaged, not a HuBERT, fine-tuned, or keys do not match.
    """
    architecture, weights = _read(path, tensors=True)
    state = rename(weights, torchaudio_name, path)
    mask_embedding = state.pop(MASK_EMBEDDING, None)
    return fill_hubert(architecture, state, mask_embedding, path)


def weights_file(path: Path) -> Path:
    """The file whose SHA-256 identifies the checkpoint."""
    return path
