"""Build a HuBERT from a plain description of its architecture."""

from typing import Any

import torch
from torch import Tensor, nn
from torchaudio.models import Wav2Vec2Model, wav2vec2_model
from torchaudio.models.wav2vec2.components import FeatureExtractor

from espnet2_lamer.convert.positional import PositionalEmbedding

# torchaudio's factory arguments; the defaults are HuBERT-Large's.
LARGE: dict[str, Any] = {
    "extractor_mode": "layer_norm",
    "extractor_conv_layer_config": [[512, 10, 5]]
    + [[512, 3, 2]] * 4
    + [[512, 2, 2]] * 2,
    "extractor_conv_bias": True,
    "encoder_embed_dim": 1024,
    "encoder_projection_dropout": 0.0,
    "encoder_pos_conv_kernel": 128,
    "encoder_pos_conv_groups": 16,
    "encoder_num_layers": 24,
    "encoder_num_heads": 16,
    "encoder_attention_dropout": 0.0,
    "encoder_ff_interm_features": 4096,
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.0,
    "encoder_layer_norm_first": True,
    "encoder_layer_drop": 0.0,
}
# What a checkpoint decides. Dropout and layer drop are options of a training, not of
# weights: whatever the format, a loaded model has none.
STRUCTURE = tuple(key for key in LARGE if "drop" not in key)
# Far above any HuBERT, low enough that a wrong number cannot hang the program.
MAX_LAYERS = 256
MAX_SIZE = 2**16


def normalize_waveform(waveforms: Tensor, lengths: Tensor | None) -> Tensor:
    """Zero mean and unit variance over each utterance's valid samples.

    Args:
        waveforms: ``[B, n]``; padding may hold anything, NaN included.
        lengths: Valid samples ``[B]``, or ``None`` when all are valid.

    Returns:
        ``[B, n]`` with zeros in the padding; variance is biased, eps 1e-5, as
        ``torch.nn.functional.layer_norm`` over one utterance.
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


def strided_conv(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Unpadded 1-D convolution over frame-major input, as a few matrix products.

    The kernel is cut into pieces as wide as the stride; each piece multiplies the
    non-overlapping blocks of the input, so neither input nor output is transposed.

    Args:
        x: ``[B, T, C_in]``.
        conv: Its weight ``[C_out, C_in, k]``, bias and stride s are used.

    Returns:
        ``[B, (T - k) // s + 1, C_out]``.
    """
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    batch, length, channels = x.shape
    frames = (length - kernel) // stride + 1
    pieces = -(-kernel // stride)
    needed = (frames + pieces - 1) * stride
    # Samples past the last frame's reach are never multiplied: their weight is absent.
    x = (
        x[:, :needed]
        if needed <= length
        else nn.functional.pad(x, (0, 0, 0, needed - length))
    )
    blocks = x.reshape(batch, -1, stride * channels)
    weight = conv.weight.transpose(1, 2)  # [C_out, k, C_in]
    y = None
    for piece in range(pieces):
        part = weight[:, piece * stride : (piece + 1) * stride].flatten(1)
        block = blocks[:, piece : piece + frames, : part.shape[1]]
        bias = conv.bias if piece == 0 else None
        term = nn.functional.linear(block, part, bias)
        y = term if y is None else y + term
    return y


class HubertFeatureExtractor(FeatureExtractor):
    """torchaudio's convolution stack with waveform normalisation in front.

    Sitting first inside ``wav2vec2``, it gives every door (training, S3PRL, feature
    extraction) the normalisation exactly once. The layer-norm variant is computed
    frame-major, which spares the transposes around every LayerNorm (2-3x on a CPU).
    Parameter names are torchaudio's.

    Args:
        conv_layers: torchaudio's convolution blocks.
        normalize_waveform: Whether to normalise each utterance.
        frame_major: Whether every block has a LayerNorm.
    """

    def __init__(
        self, conv_layers: nn.ModuleList, normalize_waveform: bool, frame_major: bool
    ) -> None:
        super().__init__(conv_layers)
        self.normalize_waveform = normalize_waveform
        self.frame_major = frame_major

    def forward(
        self, x: Tensor, length: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Map waveforms ``[B, n]`` to features ``[B, T, C]`` and their lengths."""
        if self.normalize_waveform:
            x = normalize_waveform(x, length)
        if not self.frame_major:
            return super().forward(x, length)
        x = x.unsqueeze(-1)
        for block in self.conv_layers:
            x = strided_conv(x, block.conv)
            norm = block.layer_norm
            x = nn.functional.layer_norm(
                x, norm.normalized_shape, norm.weight, norm.bias, norm.eps
            )
            x = nn.functional.gelu(x)
            if length is not None:
                length = torch.div(
                    length - block.kernel_size, block.stride, rounding_mode="floor"
                )
                length = (length + 1).clamp(min=0)
        return x, length


def _check_sizes(architecture: dict[str, Any]) -> None:
    for key in STRUCTURE:
        if type(LARGE[key]) is int:
            limit = MAX_LAYERS if key.endswith("layers") else MAX_SIZE
            _check_size(key, architecture[key], limit)
    layers = architecture["extractor_conv_layer_config"]
    if not isinstance(layers, list | tuple) or not 0 < len(layers) <= MAX_LAYERS:
        raise ValueError(
            f"extractor_conv_layer_config: found {str(layers)[:80]}, expected a list "
            f"of 1 to {MAX_LAYERS} convolutions"
        )
    for index, layer in enumerate(layers):
        if not isinstance(layer, list | tuple) or len(layer) != 3:
            raise ValueError(
                f"extractor_conv_layer_config[{index}]: found {str(layer)[:80]}, "
                "expected [channels, kernel, stride]"
            )
        for value in layer:
            _check_size(f"extractor_conv_layer_config[{index}]", value, MAX_SIZE)


def _check_size(key: str, value: Any, limit: int) -> None:
    if not isinstance(value, int) or not 0 < value <= limit:
        raise ValueError(f"{key}: found {value!r}, expected 1 to {limit}")


def build_hubert(architecture: dict[str, Any]) -> Wav2Vec2Model:
    """Build a model with random weights.

    Args:
        architecture: torchaudio's ``wav2vec2_model`` arguments (missing ones are
            HuBERT-Large's) and ``normalize_waveform: bool``.

    Returns:
        The model, with ``architecture`` (complete), ``normalize_waveform``,
        ``extractor_mode`` and ``mask_embedding`` (``None``) as attributes.

    Raises:
        ValueError: Unknown key, or a size that no network has.
    """
    known = LARGE | {"normalize_waveform": True}
    unknown = sorted(set(architecture) - set(known))
    if unknown:
        raise ValueError(
            f"unknown architecture keys {unknown}; expected some of {sorted(known)}"
        )
    full = known | architecture
    _check_sizes(full)
    arguments = {key: full[key] for key in LARGE}
    model = wav2vec2_model(**arguments, aux_num_out=None)
    model.feature_extractor = HubertFeatureExtractor(
        model.feature_extractor.conv_layers,
        full["normalize_waveform"],
        full["extractor_mode"] == "layer_norm",
    )
    model.encoder.transformer.pos_conv_embed = PositionalEmbedding(
        full["encoder_embed_dim"],
        full["encoder_pos_conv_kernel"],
        full["encoder_pos_conv_groups"],
    )
    model.architecture = full
    model.normalize_waveform = full["normalize_waveform"]
    model.extractor_mode = full["extractor_mode"]
    model.mask_embedding = None
    return model
