"""Whisper's residual blocks with padding masks, routed LoRAs and cached keys."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet2_lamer.whisper.cache import BlockCache, KeysValues
from espnet2_lamer.whisper.lora import Mixture, Route, apply_linear

# openai-whisper's own forward knows neither padding nor routes; its modules and their
# parameters are used as they are.
Use = Route | Mixture | None


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
    ``memory_mask`` its :func:`key_mask`; with a cache it may be that of one utterance
    ``[1, T, D]`` for all rows.
    """
    h = block.attn_ln(x)
    keys = _keys_values(block.attn, h, use)
    if cache is not None:
        keys = cache.append(*keys)
    x = x + _attend(block.attn, h, *keys, use, causal=x.shape[1] > 1)
    of_memory = None if cache is None else cache.memory
    if of_memory is None:
        of_memory = _keys_values(block.cross_attn, memory, use)
        if cache is not None:
            cache.memory = of_memory
    h = block.cross_attn_ln(x)
    x = x + _attend(block.cross_attn, h, *of_memory, use, mask=memory_mask)
    return x + _mlp(block, x, use)


def _mlp(block: nn.Module, x: Tensor, use: Use) -> Tensor:
    up, activation, down = block.mlp
    hidden = activation(apply_linear(up, block.mlp_ln(x), use))
    return apply_linear(down, hidden, use)


def _keys_values(attention: nn.Module, x: Tensor, use: Use) -> KeysValues:
    return tuple(
        _split(apply_linear(linear, x, use), attention.n_head)
        for linear in (attention.key, attention.value)
    )


def _split(x: Tensor, heads: int) -> Tensor:  # [B, T, D] -> [B, heads, T, D / heads]
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _attend(
    attention: nn.Module,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    use: Use,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Attend from ``x [B, U, D]`` to ``[B or 1, heads, T, D / heads]``."""
    query = _split(apply_linear(attention.query, x, use), attention.n_head)
    keys, values = (t.expand(len(x), -1, -1, -1) for t in (keys, values))
    y = F.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=causal
    )
    y = y.transpose(1, 2).flatten(2)
    return apply_linear(attention.out, y, use)
