"""HuBERT's convolutional position embedding, right under bf16 autocast on every CPU."""

import torch
from torch import Tensor
from torchaudio.models.wav2vec2.components import ConvolutionalPositionalEmbedding

# Fewest channels per group for which oneDNN's bf16 convolution was right.
SAFE_CHANNELS = 16


class PositionalEmbedding(ConvolutionalPositionalEmbedding):
    """torchaudio's, except that narrow groups are convolved in float32 on a CPU.

    On CPUs with bf16 instructions (seen with torch 2.11 on AVX-512 BF16 and AMX) a
    grouped convolution with fewer than 16 channels per group and an even kernel
    returns values and gradients that have nothing to do with the right ones.
    HuBERT-Base and Large have 48 and 64 channels per group; tiny models do not.

    Args:
        embed_dim: Width D.
        kernel_size: Frames.
        groups: Groups of channels.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map frames ``[B, T, D]`` to position embeddings ``[B, T, D]``."""
        channels = self.conv.in_channels // self.conv.groups
        if x.device.type != "cpu" or channels >= SAFE_CHANNELS:
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(x.dtype)
