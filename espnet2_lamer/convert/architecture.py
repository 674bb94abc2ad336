"""A network's architecture: one table for every format, and the model built from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.models import Wav2Vec2Model, wav2vec2_model
from torchaudio.models.wav2vec2.components import FeatureExtractor

from espnet2_lamer.convert.families import ADDED, check_family
from espnet2_lamer.convert.positions import PositionalEmbedding, PositionStack
from espnet2_lamer.convert.relative_attention import RelativeAttention
from espnet2_lamer.layers.working import in_type, layer_norm


@dataclass(frozen=True)
class Argument:
    """An argument of torchaudio's factory, and what other formats call it.

    Attributes:
        default: HuBERT-Large's.
        huggingface: Key of ``config.json``; ``conv_dim`` has two more beside it.
        fairseq: Key of fairseq's ``HubertConfig``.
    """

    default: Any
    huggingface: str = ""
    fairseq: str = ""


LARGE_CONVOLUTIONS = [[512, 10, 5], *[[512, 3, 2]] * 4, *[[512, 2, 2]] * 2]
#: By torchaudio's name, which ESPnet has as well.
ARGUMENTS = {
    "extractor_mode": Argument("layer_norm", "feat_extract_norm", "extractor_mode"),
    "extractor_conv_layer_config": Argument(
        LARGE_CONVOLUTIONS, "conv_dim", "conv_feature_layers"
    ),
    "extractor_conv_bias": Argument(True, "conv_bias", "conv_bias"),
    "encoder_embed_dim": Argument(1024, "hidden_size", "encoder_embed_dim"),
    "encoder_projection_dropout": Argument(0.0, "feat_proj_dropout", "dropout_input"),
    "encoder_pos_conv_kernel": Argument(128, "num_conv_pos_embeddings", "conv_pos"),
    "encoder_pos_conv_groups": Argument(
        16, "num_conv_pos_embedding_groups", "conv_pos_groups"
    ),
    "encoder_num_layers": Argument(24, "num_hidden_layers", "encoder_layers"),
    "encoder_num_heads": Argument(16, "num_attention_heads", "encoder_attention_heads"),
    "encoder_attention_dropout": Argument(
        0.0, "attention_dropout", "attention_dropout"
    ),
    "encoder_ff_interm_features": Argument(
        4096, "intermediate_size", "encoder_ffn_embed_dim"
    ),
    "encoder_ff_interm_dropout": Argument(
        0.0, "activation_dropout", "activation_dropout"
    ),
    "encoder_dropout": Argument(0.0, "hidden_dropout", "dropout"),
    "encoder_layer_norm_first": Argument(
        True, "do_stable_layer_norm", "layer_norm_first"
    ),
    "encoder_layer_drop": Argument(0.0),
}
LARGE: dict[str, Any] = {key: argument.default for key, argument in ARGUMENTS.items()}
# What a checkpoint decides. Dropout and layer drop are options of a training, not of
# weights: whatever the format, a loaded model has none.
STRUCTURE = tuple(key for key in ARGUMENTS if "drop" not in key)
#: Without layer drop, which S3PRL switches off.
DROPOUTS = tuple(key for key in ARGUMENTS if key.endswith("_dropout"))
# Those that need no translation but of their names.
PLAIN = tuple(key for key in STRUCTURE if type(LARGE[key]) in (int, bool))
# Far above any HuBERT, low enough that a wrong number cannot hang the program.
MAX_LAYERS = 256
MAX_SIZE = 2**16


def normalize_waveform(waveforms: Tensor, lengths: Tensor | None) -> Tensor:
    """Zero mean and unit variance over each utterance's valid samples.

    Variance is biased, eps 1e-5, as ``torch.nn.functional.layer_norm`` over one
    utterance. Padding of ``waveforms [B, n]`` beyond ``lengths [B]`` (``None``: there
    is none) may hold anything, NaN included, and becomes 0.
    """
    if lengths is None:
        return nn.functional.layer_norm(waveforms, waveforms.shape[-1:])
    positions = torch.arange(waveforms.shape[1], device=waveforms.device)
    valid = positions < lengths[:, None].to(waveforms.device)
    count = valid.sum(1, keepdim=True).clamp(min=1)
    samples = waveforms.masked_fill(~valid, 0.0)
    mean = samples.sum(1, keepdim=True) / count
    centred = (samples - mean).masked_fill(~valid, 0.0)
    variance = centred.square().sum(1, keepdim=True) / count
    return centred * torch.rsqrt(variance + 1e-5)


def conv_rows(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Convolve frames that lie one after the other, by matrix products.

    An unpadded 1-D convolution with stride s and kernel k <= 2 s, frame-major: the
    kernel is cut into two pieces at the stride, and each multiplies the blocks of s
    frames, so that no input is copied or transposed.

    Args:
        x: ``[R, C_in]``, the frames of a whole batch, each utterance a multiple of s.
        conv: Its kernel and bias.

    Returns:
        ``[R / s, C_out]``; the last row of an utterance reaches into the next one where
        k > s, and belongs to no frame.
    """
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    blocks = x.reshape(-1, stride * x.shape[-1])
    weight = in_type(conv.weight, x.dtype).transpose(1, 2)  # [C_out, k, C_in]
    bias = in_type(conv.bias, x.dtype)
    first, rest = (part.flatten(1) for part in weight.tensor_split([stride], 1))
    if kernel <= stride:
        return F.linear(blocks[:, : first.shape[1]], first, bias)
    if x.shape[-1] == 1:
        # A product over so few samples is slower than the copy.
        both = torch.cat([blocks, blocks.roll(-1, 0)[:, : rest.shape[1]]], 1)
        return F.linear(both, weight.flatten(1), bias)
    y, tail = F.linear(blocks, first, bias), blocks[1:, : rest.shape[1]]
    if y.requires_grad or y.dtype != x.dtype:
        return y + F.pad(F.linear(tail, rest), (0, 0, 0, 1))
    y[:-1].addmm_(tail, rest.t())
    return y


class HubertFeatureExtractor(FeatureExtractor):
    """torchaudio's convolution stack with waveform normalisation in front.

    Sitting first inside ``wav2vec2``, it gives every door (training, S3PRL, feature
    extraction) the normalisation exactly once. Where every block has a LayerNorm and no
    kernel is longer than two strides it computes ``frame_major``, which spares the
    transposes around each (2-3x on a CPU).
    """

    def __init__(
        self, conv_layers: nn.ModuleList, normalize_waveform: bool, frame_major: bool
    ) -> None:
        super().__init__(conv_layers)
        self.normalize_waveform = normalize_waveform
        shapes = [(block.kernel_size, block.stride) for block in conv_layers]
        self.frame_major = frame_major and all(k <= 2 * s for k, s in shapes)
        self.shift = prod(stride for _, stride in shapes)
        self.reach = 1
        for kernel, stride in reversed(shapes):
            self.reach = (self.reach - 1) * stride + kernel

    def num_frames(self, samples: int | Tensor) -> int | Tensor:
        """Frames of so many samples, 0 of fewer than one frame reaches."""
        frames = (samples - self.reach) // self.shift + 1
        return max(frames, 0) if isinstance(frames, int) else frames.clamp(min=0)

    def forward(
        self,
        x: Tensor,
        length: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Map waveforms ``[B, n]`` to features ``[B, T, C]`` and their lengths.

        Convolutions compute in ``dtype``, ``None``: the waveforms'.
        """
        if self.normalize_waveform:
            x = normalize_waveform(x, length)
        frames = None if length is None else self.num_frames(length)
        x = x if dtype is None else x.to(dtype)
        return self._by_frame(x) if self.frame_major else self._by_channel(x), frames

    def _by_frame(self, x: Tensor) -> Tensor:
        batch, samples = x.shape
        rows = F.pad(x, (0, -samples % self.shift)).view(-1, 1)
        for block in self.conv_layers:
            rows = F.gelu(layer_norm(block.layer_norm, conv_rows(rows, block.conv)))
        return rows.unflatten(0, (batch, -1))[:, : self.num_frames(samples)]

    def _by_channel(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)
        for block in self.conv_layers:
            conv, norm = block.conv, block.layer_norm
            weight, bias = (in_type(p, x.dtype) for p in (conv.weight, conv.bias))
            x = F.conv1d(x, weight, bias, conv.stride)
            if isinstance(norm, nn.GroupNorm):
                scale, shift = (in_type(p, x.dtype) for p in (norm.weight, norm.bias))
                x = F.group_norm(x, norm.num_groups, scale, shift, norm.eps)
            elif norm is not None:
                x = layer_norm(norm, x.transpose(1, 2)).transpose(1, 2)
            x = F.gelu(x)
        return x.transpose(1, 2)


def _check_sizes(architecture: dict[str, Any]) -> None:
    sizes = [
        (key, architecture[key], MAX_LAYERS if key.endswith("layers") else MAX_SIZE)
        for key in PLAIN
        if type(LARGE[key]) is int
    ]
    added = [key for key in architecture if key in ADDED and key != "family"]
    sizes += [(key, architecture[key], MAX_SIZE) for key in added]
    sizes += [(key, architecture[key], MAX_LAYERS) for key in added if "depth" in key]
    key = "extractor_conv_layer_config"
    layers = architecture[key]
    if not isinstance(layers, list | tuple) or not 0 < len(layers) <= MAX_LAYERS:
        raise ValueError(
            f"{key}: found {str(layers)[:80]}, expected a list of 1 to {MAX_LAYERS} "
            "convolutions"
        )
    for index, layer in enumerate(layers):
        if not isinstance(layer, list | tuple) or len(layer) != 3:
            raise ValueError(
                f"{key}[{index}]: found {str(layer)[:80]}, expected [channels, kernel, "
                "stride]"
            )
        sizes += [(f"{key}[{index}]", value, MAX_SIZE) for value in layer]
    for key, value, most in sizes:
        if not isinstance(value, int) or not 0 < value <= most:
            raise ValueError(f"{key}: found {value!r}, expected 1 to {most}")


def build_hubert(architecture: dict[str, Any]) -> Wav2Vec2Model:
    """Build a model with random weights.

    ``architecture`` has torchaudio's ``wav2vec2_model`` arguments (missing ones are
    HuBERT-Large's), ``normalize_waveform: bool``, and what another family has beside
    (:data:`~espnet2_lamer.convert.families.ADDED`). The model has ``architecture``
    (complete, but for what is HuBERT's of the latter), ``normalize_waveform``,
    ``extractor_mode``, ``hears_padding`` (whether utterances of a padded batch must be
    computed one by one by torchaudio's own functions) and ``mask_embedding`` (``None``)
    as attributes.

    Raises:
        ValueError: Unknown key, or a size that no network has.
    """
    known = LARGE | {"normalize_waveform": True}
    unknown = sorted(set(architecture) - set(known) - set(ADDED))
    if unknown:
        raise ValueError(
            f"unknown architecture keys {unknown}; expected some of "
            f"{sorted(known | ADDED)}"
        )
    full = known | architecture
    full = {k: v for k, v in full.items() if k not in ADDED or v != ADDED[k]}
    _check_sizes(full)
    check_family(full)
    model = wav2vec2_model(**{key: full[key] for key in LARGE}, aux_num_out=None)
    model.feature_extractor = HubertFeatureExtractor(
        model.feature_extractor.conv_layers,
        full["normalize_waveform"],
        full["extractor_mode"] == "layer_norm",
    )
    transformer = model.encoder.transformer
    sizes = (
        full["encoder_embed_dim"],
        full["encoder_pos_conv_kernel"],
        full["encoder_pos_conv_groups"],
    )
    if depth := full.get("encoder_pos_conv_depth"):
        transformer.pos_conv_embed = PositionStack(*sizes, depth)
    else:
        transformer.pos_conv_embed = PositionalEmbedding(*sizes)
    if buckets := full.get("encoder_num_buckets"):
        for number, layer in enumerate(transformer.layers):
            of_all = () if number else (buckets, full["encoder_max_distance"])
            layer.attention = RelativeAttention(
                full["encoder_embed_dim"],
                full["encoder_num_heads"],
                full["encoder_attention_dropout"],
                *of_all,
            )
    model.architecture = full
    model.normalize_waveform = full["normalize_waveform"]
    model.extractor_mode = full["extractor_mode"]
    model.hears_padding = (
        full["extractor_mode"] == "group_norm"
        or transformer.pos_conv_embed.hears_padding
    )
    model.mask_embedding = None
    return model


def set_dropouts(wav2vec2: Wav2Vec2Model, dropouts: Mapping[str, float]) -> None:
    """Give a built network the dropouts of a training, by :data:`DROPOUTS`, in place.

    They act in train mode alone. Its ``architecture`` stays what it was: weights.
    """
    projection, attention, intermediate, block = (dropouts[key] for key in DROPOUTS)
    wav2vec2.encoder.feature_projection.dropout.p = projection
    transformer = wav2vec2.encoder.transformer
    transformer.dropout.p = block
    for layer in transformer.layers:
        layer.attention.dropout = attention
        layer.dropout.p = block
        layer.feed_forward.intermediate_dropout.p = intermediate
        layer.feed_forward.output_dropout.p = block
