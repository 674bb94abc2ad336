"""wav2vec 2.0 checkpoints of fairseq2, such as omniASR's: weights without settings.

fairseq2 keeps a model's settings in its own catalogue, not in the file. What the
tensors' shapes do not tell (the number of heads) is known for published sizes.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from espnet2_lamer.errors import RecipeError

#: Heads by width and depth: base, large and omniASR 300M, 1B, 2B, omniASR 3B, 7B.
HEADS = {
    (768, 12): 12,
    (1024, 24): 16,
    (1280, 48): 16,
    (1920, 48): 16,
    (2048, 60): 16,
    (2048, 128): 16,
}
# Kernel and stride of every size's convolutions.
_STRIDES = {10: 5, 3: 2, 2: 2}
_FRONT = r"encoder_frontend\."
_BLOCK = r"encoder\.layers\.(\d+)\."
_LAYER = r"encoder.transformer.layers.\1."
#: Their names differ from fairseq's wherever the meaning does.
NAMES = (
    # Quantizer and contrastive loss; of a recogniser its projection to letters.
    (r"final_target_proj\.", None),
    (
        rf"{_FRONT}feature_extractor\.layers\.(\d+)\.group_norm\.",
        r"feature_extractor.conv_layers.\1.layer_norm.",
    ),
    (rf"{_FRONT}feature_extractor\.layers\.", "feature_extractor.conv_layers."),
    (rf"{_FRONT}post_extract_layer_norm\.", "encoder.feature_projection.layer_norm."),
    (rf"{_FRONT}model_dim_proj\.", "encoder.feature_projection.projection."),
    (rf"{_FRONT}pos_encoder\.", "encoder.transformer.pos_conv_embed."),
    # Of the post-norm stack, in front of the blocks; the pre-norm stack's is behind.
    (rf"{_FRONT}layer_norm\.", "encoder.transformer.layer_norm."),
    (r"masker\.temporal_mask_embed$", "mask_emb"),
    (rf"{_BLOCK}self_attn\.output_proj\.", rf"{_LAYER}attention.out_proj."),
    (rf"{_BLOCK}ffn\.inner_proj\.", rf"{_LAYER}feed_forward.intermediate_dense."),
    (rf"{_BLOCK}ffn\.output_proj\.", rf"{_LAYER}feed_forward.output_dense."),
    (rf"{_BLOCK}ffn_layer_norm\.", rf"{_LAYER}final_layer_norm."),
)
_PROJECTION = "encoder_frontend.model_dim_proj.weight"
_CONV = "encoder_frontend.feature_extractor.layers.{}.conv.weight"
_POSITIONS = "encoder_frontend.pos_encoder.conv."


def weights_of(state: Any) -> dict[str, Any] | None:
    """The tensors of a fairseq2 file, or ``None`` where it is none."""
    if not isinstance(state, Mapping):
        return None
    for found in (state.get("model"), state):
        if isinstance(found, Mapping) and _PROJECTION in found:
            return dict(found)
    return None


def architecture_of(weights: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Tell the network from its tensors' shapes.

    Waveforms are normalised, as omniASR's are.

    Raises:
        RecipeError: A tensor that tells something is missing, or the size is unknown.
    """

    def shape(name: str) -> tuple[int, ...]:
        tensor = weights.get(name)
        if not isinstance(tensor, Tensor):
            raise RecipeError(f"{path}: {name}: missing, expected in a wav2vec 2.0")
        return tuple(tensor.shape)

    width = shape(_PROJECTION)[0]
    numbers = [int(m[1]) for name in weights if (m := re.match(_BLOCK, name))]
    depth = max(numbers, default=-1) + 1
    if (width, depth) not in HEADS:
        known = ", ".join(f"{w} x {d}" for w, d in HEADS)
        raise RecipeError(
            f"{path}: found a network of width {width} and {depth} layers, expected "
            f"one of {known}: a fairseq2 file does not say how many heads it has; give "
            "the model as a Hugging Face directory"
        )
    convolutions = []
    while _CONV.format(len(convolutions)) in weights:
        channels, _, kernel = shape(_CONV.format(len(convolutions)))
        if kernel not in _STRIDES:
            raise RecipeError(
                f"{path}: {_CONV.format(len(convolutions))}: found kernel {kernel}, "
                f"expected one of {sorted(_STRIDES)}, whose strides are known"
            )
        convolutions.append([channels, kernel, _STRIDES[kernel]])
    kernels = [
        name
        for name in (
            f"{_POSITIONS}weight_v",
            f"{_POSITIONS}parametrizations.weight.original1",
        )
        if name in weights
    ]
    _, per_group, kernel = shape((kernels or [f"{_POSITIONS}weight_v"])[0])
    groups = "encoder_frontend.feature_extractor.layers.0.group_norm.weight"
    return {
        "family": "wav2vec2",
        "extractor_mode": "group_norm" if groups in weights else "layer_norm",
        "extractor_conv_layer_config": convolutions,
        "extractor_conv_bias": _CONV.format(0).replace("weight", "bias") in weights,
        "encoder_embed_dim": width,
        "encoder_pos_conv_kernel": kernel,
        "encoder_pos_conv_groups": width // max(per_group, 1),
        "encoder_num_layers": depth,
        "encoder_num_heads": HEADS[width, depth],
        "encoder_ff_interm_features": shape("encoder.layers.0.ffn.inner_proj.weight")[
            0
        ],
        "encoder_layer_norm_first": "encoder.layer_norm.weight" in weights,
        "normalize_waveform": True,
    }
