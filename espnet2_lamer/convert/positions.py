"""Convolutional position embeddings: one wide kernel, or data2vec's stack."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.models.wav2vec2.components import ConvolutionalPositionalEmbedding

from espnet2_lamer.layers.working import autocast_type, in_type

# Fewest channels per group for which oneDNN's bf16 convolution was right.
SAFE_CHANNELS = 16


def safe_type(conv: nn.Conv1d, device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The type that a grouped convolution computes in: narrow ones float32 on a CPU.

    On CPUs with bf16 instructions (seen with torch 2.11 on AVX-512 BF16 and AMX) a
    grouped convolution with fewer than 16 channels per group and an even kernel
    returns values and gradients that have nothing to do with the right ones.
    HuBERT-Base and Large have 48 and 64 channels per group; tiny models do not.
    """
    narrow = conv.in_channels // conv.groups < SAFE_CHANNELS
    half = dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if half and narrow and device.type == "cpu" else dtype


def _convolve(x: Tensor, conv: nn.Conv1d, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve ``[B, D, T]`` to ``[B, D, T]``; an even kernel gives one frame more."""
    weight, bias = in_type(weight, x.dtype), in_type(bias, x.dtype)
    y = F.conv1d(x, weight, bias, padding=conv.padding, groups=conv.groups)
    return y[..., : x.shape[-1]]


class PositionalEmbedding(ConvolutionalPositionalEmbedding):
    """torchaudio's, except that narrow groups are convolved as :func:`safe_type` says.

    ``real``, which the stack needs, is not used: what it reads at padding is 0.
    """

    #: Whether its result at real frames depends on how much padding follows.
    hears_padding = False
    #: Kernel and bias that :meth:`fold` computed.
    folded: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Map frames ``[B, T, D]`` to position embeddings ``[B, T, D]``."""
        dtype = safe_type(self.conv, x.device, autocast_type(x))
        weight, bias = self.folded or (self.conv.weight, self.conv.bias)
        with torch.autocast(x.device.type, enabled=False):
            y = _convolve(x.transpose(1, 2).to(dtype), self.conv, weight, bias)
            y = F.gelu(y)
        return y.transpose(1, 2).to(x.dtype)

    def fold(self, dtype: torch.dtype | None) -> None:
        """Compute the weight-normalised kernel once: the weights will not change."""
        weight, bias = self.conv.weight.detach(), self.conv.bias.detach()
        dtype = safe_type(self.conv, weight.device, dtype or weight.dtype)
        self.folded = weight.to(dtype), bias.to(dtype)


class PositionBlock(nn.Module):
    """One convolution of :class:`PositionStack`; it holds the weights alone."""

    def __init__(self, embed_dim: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(
            *(embed_dim, embed_dim, kernel_size),
            padding=kernel_size // 2,
            groups=groups,
        )


class PositionStack(nn.Module):
    """data2vec's position embedding: ``depth`` times convolution, LayerNorm and GELU.

    The LayerNorms have no weights. A convolution after the first would read what the
    ones before made of padding, so that frames near an utterance's end depended on its
    batch; with ``real`` padding is set to 0 before each, as if nothing followed.

    Args:
        embed_dim: D.
        kernel_size: Frames of each convolution.
        groups: Groups of channels.
        depth: Convolutions, one after the other.
    """

    hears_padding = True
    folded: tuple[tuple[Tensor, Tensor], ...] | None = None

    def __init__(
        self, embed_dim: int, kernel_size: int, groups: int, depth: int
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.layers = nn.ModuleList(
            PositionBlock(embed_dim, kernel_size, groups) for _ in range(depth)
        )

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Map frames ``[B, T, D]``, 0 at padding, to embeddings ``[B, T, D]``.

        ``real [B, T]`` is true at frames that are no padding; ``None``: all are.
        """
        first = self.layers[0].conv
        dtype = safe_type(first, x.device, autocast_type(x))
        folded = self.folded or [(b.conv.weight, b.conv.bias) for b in self.layers]
        keep = None if real is None else real.unsqueeze(1)
        y = x.transpose(1, 2).to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            for number, (weight, bias) in enumerate(folded):
                if number and keep is not None:
                    y = y.masked_fill(~keep, 0.0)
                y = _convolve(y, first, weight, bias).transpose(1, 2)
                y = F.gelu(F.layer_norm(y, (self.embed_dim,))).transpose(1, 2)
        return y.transpose(1, 2).to(x.dtype)

    def fold(self, dtype: torch.dtype | None) -> None:
        """Take the type that the kernels compute in: the weights will not change."""
        convs = [block.conv for block in self.layers]
        dtype = safe_type(
            convs[0], convs[0].weight.device, dtype or convs[0].weight.dtype
        )
        self.folded = tuple(
            (conv.weight.detach().to(dtype), conv.bias.detach().to(dtype))
            for conv in convs
        )
