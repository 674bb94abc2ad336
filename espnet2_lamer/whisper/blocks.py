"""Whisper's residual blocks with padding masks, routed LoRAs and cached keys."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet2_lamer.whisper.lora import Mixture, Route, apply_linear

# openai-whisper's own forward knows neither padding nor routes; its modules and their
# parameters are used as they are.
Use = Route | Mixture | None


@dataclass
class BlockCache:
    """Keys and values of one decoder block: of its past tokens and of the memory."""

    past: tuple[Tensor, Tensor] | None = None
    memory: tuple[Tensor, Tensor] | None = None

    @property
    def length(self) -> int:
        """Number of past tokens."""
        return 0 if self.past is None else self.past[0].shape[1]


def real_positions(lengths: Tensor, size: int) -> Tensor:
    """Return ``[B, size]``, true below each length."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def key_mask(lengths: Tensor, size: int) -> Tensor | None:
    """Return the keys to attend to, ``[B, 1, 1, size]``, or ``None`` for all.

    ``None`` where nothing is padded: attention then runs the kernel that
    openai-whisper's does, and gives its result to the bit.
    """
    if bool((lengths >= size).all()):
        return None
    return real_positions(lengths, size)[:, None, None]


def encoder_block(block: nn.Module, x: Tensor, mask: Tensor | None, use: Use) -> Tensor:
    """Apply a block of the encoder to ``x [B, T, D]``."""
    h = block.attn_ln(x)
    keys = _keys_values(block.attn, h, use)
    x = x + _attend(block.attn, h, *keys, use, mask=mask)
    return x + _mlp(block, x, use)


def decoder_block(
    block: nn.Module,
    x: Tensor,
    memory: Tensor,
    memory_mask: Tensor | None,
    use: Use,
    cache: BlockCache | None = None,
) -> Tensor:
    """Apply a block of the decoder to new tokens ``x [B, U, D]``.

    With a filled cache it is one token. ``memory [B, T, D]`` is the encoder's output,
    ``memory_mask`` its :func:`key_mask`.
    """
    cache = cache or BlockCache()
    h = block.attn_ln(x)
    keys = _keys_values(block.attn, h, use)
    if cache.past is not None:
        keys = tuple(torch.cat(pair, 1) for pair in zip(cache.past, keys, strict=True))
    cache.past = keys
    x = x + _attend(block.attn, h, *keys, use, causal=x.shape[1] > 1)
    if cache.memory is None:
        cache.memory = _keys_values(block.cross_attn, memory, use)
    h = block.cross_attn_ln(x)
    x = x + _attend(block.cross_attn, h, *cache.memory, use, mask=memory_mask)
    return x + _mlp(block, x, use)


def _mlp(block: nn.Module, x: Tensor, use: Use) -> Tensor:
    up, activation, down = block.mlp
    hidden = activation(apply_linear(up, block.mlp_ln(x), use))
    return apply_linear(down, hidden, use)


def _keys_values(attention: nn.Module, x: Tensor, use: Use) -> tuple[Tensor, Tensor]:
    return apply_linear(attention.key, x, use), apply_linear(attention.value, x, use)


def _attend(
    attention: nn.Module,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    use: Use,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    heads = attention.n_head

    def split(tensor: Tensor) -> Tensor:  # [B, T, D] -> [B, heads, T, D / heads]
        return tensor.view(*tensor.shape[:2], heads, -1).permute(0, 2, 1, 3)

    query = apply_linear(attention.query, x, use)
    y = F.scaled_dot_product_attention(
        split(query), split(keys), split(values), attn_mask=mask, is_causal=causal
    )
    y = y.permute(0, 2, 1, 3).flatten(2)
    return apply_linear(attention.out, y, use)
