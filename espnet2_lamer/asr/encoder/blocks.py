"""HuBERT's transformer over real frames alone, in one type, without a host's question.

torchaudio's modules hold the weights; what they compute is computed here, so that
nothing is read from the device, copied or masked on the way.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet2_lamer.layers.packing import Packing
from espnet2_lamer.layers.working import layer_norm, linear, using


def project(wav2vec2: nn.Module, features: Tensor) -> Tensor:
    """Map features of the convolution stack ``[..., C]`` to ``[..., D]``."""
    projection = wav2vec2.encoder.feature_projection
    x = layer_norm(projection.layer_norm, features)
    return projection.dropout(linear(projection.projection, x))


def enter(wav2vec2: nn.Module, x: Tensor, packing: Packing) -> Tensor:
    """Add position embeddings to ``x [B, T, D]``, 0 at padding; returns ``[R, D]``."""
    transformer = wav2vec2.encoder.transformer
    real = None if packing.rows is None else packing.real
    x = packing.pack(x + transformer.pos_conv_embed(x, real))
    # torchaudio stores the negation: true is the post-norm stack's.
    if transformer.layer_norm_first:
        x = layer_norm(transformer.layer_norm, x)
    return transformer.dropout(x)


def position_bias(wav2vec2: nn.Module, x: Tensor, packing: Packing) -> Tensor | None:
    """WavLM's bias by distance ``[H, T, T]`` for all blocks; other families have none.

    It is computed once, before the first block: under gradient checkpointing a block
    that is computed again must find what it found before.
    """
    first = wav2vec2.encoder.transformer.layers[0].attention
    if not hasattr(first, "rel_attn_embed"):
        return None
    return first.position_bias(packing.frames, x.dtype)


def run_block(
    layer: nn.Module,
    x: Tensor,
    packing: Packing,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """One transformer block, ``[R, D]`` to ``[R, D]``; of WavLM with ``bias``.

    With ``rows [M]`` nothing is computed that frames at these positions do not need,
    routing apart, which counts every frame; the result is ``[M, D]``.
    """
    before, feed_forward = layer.layer_norm_first, layer.feed_forward
    if rows is not None and len(getattr(feed_forward, "routers", ())) > 0:
        if not feed_forward.one_router:
            # A router of its own reads what only computed frames have.
            whole = run_block(layer, x, packing, None, bias)
            return whole.index_select(0, rows)
    h = layer_norm(layer.layer_norm, x) if before else x
    x = x + layer.dropout(_attention(layer.attention, h, packing, bias))
    x = x if before else layer_norm(layer.layer_norm, x)
    h = layer_norm(layer.final_layer_norm, x) if before else x
    if rows is not None:
        x = x.index_select(0, rows)
    x = x + _feed_forward(feed_forward, h, rows, packing)
    return x if before else layer_norm(layer.final_layer_norm, x)


def _attention(
    attention: nn.Module, x: Tensor, packing: Packing, bias: Tensor | None
) -> Tensor:
    fused = getattr(attention, "fused", None)
    if fused is not None and fused[0].dtype == x.dtype:
        qkv = F.linear(x, *fused)
    else:
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        qkv = torch.cat([linear(part, x) for part in parts], -1)
    dropout = attention.dropout if attention.training else 0.0
    heads = attention.num_heads
    if bias is None:
        y = packing.attend(qkv, heads, dropout)
    else:
        y = packing.attend_with_bias(qkv, heads, attention.gates(x), bias, dropout)
    return linear(attention.out_proj, y)


def _feed_forward(
    feed_forward: nn.Module, x: Tensor, rows: Tensor | None, packing: Packing
) -> Tensor:
    if hasattr(feed_forward, "num_experts"):
        return feed_forward(x, rows, packing)
    x = x if rows is None else x.index_select(0, rows)
    h = feed_forward.intermediate_dropout(
        F.gelu(linear(feed_forward.intermediate_dense, x))
    )
    return feed_forward.output_dropout(linear(feed_forward.output_dense, h))


def leave(wav2vec2: nn.Module, x: Tensor) -> Tensor:
    """Apply what follows the last block."""
    transformer = wav2vec2.encoder.transformer
    return x if transformer.layer_norm_first else layer_norm(transformer.layer_norm, x)


def run_blocks(
    wav2vec2: nn.Module,
    x: Tensor,
    packing: Packing,
    copies: Mapping[nn.Parameter, Tensor],
    checkpointing: bool,
    rows: Tensor | None = None,
) -> Tensor:
    """Run every block over ``x [R, D]``; the last for frames at ``rows [M]`` alone.

    With ``checkpointing`` blocks are computed once more in the backward pass, from the
    same working ``copies``. A block with experts that layer drop leaves out is computed
    in any case: its routers are counted, and have a gradient on every rank.
    """
    transformer = wav2vec2.encoder.transformer
    drop = transformer.layer_drop if transformer.training else 0.0
    experts = any(hasattr(m.feed_forward, "num_experts") for m in transformer.layers)

    bias = position_bias(wav2vec2, x, packing)

    def again(
        layer: nn.Module, x: Tensor, rows: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        with using(copies):
            return run_block(layer, x, packing, rows, bias)

    last = len(transformer.layers) - 1
    for number, layer in enumerate(transformer.layers):
        # On the host, where random numbers are no question to a device.
        dropped = drop > 0 and float(torch.rand(())) <= drop
        only = rows if number == last else None
        if dropped and not experts:
            x = x if only is None else x.index_select(0, only)
            continue
        if checkpointing:
            y = torch.utils.checkpoint.checkpoint(
                *(again, layer, x, only, bias), use_reentrant=False
            )
        else:
            y = run_block(layer, x, packing, only, bias)
        if dropped:
            x = x if only is None else x.index_select(0, only)
            # Not a product with 0: what is left out may be anything, NaN included.
            y = torch.where(x.new_ones((), dtype=torch.bool), x, y)
        x = y
    return x


def keep_frozen(
    wav2vec2: nn.Module, names: Iterable[str], dtype: torch.dtype | None
) -> None:
    """Prepare weights that never change for many forward passes, in place.

    Those whose state keys are in ``names`` take ``dtype`` (``None``: they stay), so
    that no pass copies them. Queries, keys and values of a layer become one product,
    the weight norm of the positional convolution is computed once, and kernels of the
    convolution stack are laid out as the products over them read them. State keys and
    shapes stay as they were. Call it where the model is on its device and loaded.
    """
    state = wav2vec2.state_dict(keep_vars=True)
    frozen = [
        state[name] for name in names if name in state and not state[name].requires_grad
    ]
    known = {id(tensor) for tensor in frozen}
    positions = wav2vec2.encoder.transformer.pos_conv_embed
    own = {id(parameter) for parameter in positions.parameters()}
    for tensor in frozen:
        # Its weight is two tensors, of which the product is rounded once.
        if dtype is not None and tensor.is_floating_point() and id(tensor) not in own:
            tensor.data = tensor.data.to(dtype)
    if own <= known:
        positions.fold(dtype)
    for block in wav2vec2.feature_extractor.conv_layers:
        weight = block.conv.weight
        if id(weight) in known:
            weight.data = weight.data.transpose(1, 2).contiguous().transpose(1, 2)
    for layer in wav2vec2.encoder.transformer.layers:
        attention = layer.attention
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        tensors = [tensor for part in parts for tensor in (part.weight, part.bias)]
        if all(id(tensor) in known for tensor in tensors):
            attention.fused = tuple(
                _side_by_side(same) for same in (tensors[::2], tensors[1::2])
            )


def _side_by_side(parameters: list[nn.Parameter]) -> Tensor:
    """Join parameters along their first axis; each becomes a view of the result."""
    joined = torch.cat([parameter.data for parameter in parameters])
    sizes = [len(parameter) for parameter in parameters]
    for parameter, part in zip(parameters, joined.split(sizes), strict=True):
        parameter.data = part
    return joined
