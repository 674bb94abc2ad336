r"""WavLM's attention: a bias by distance, gated by what each frame holds.

.. math::
    \mathrm{softmax}\Bigl(\frac{q_i k_j^T}{\sqrt d} + g_i\, b_{j-i}\Bigr) v, \qquad
    g_i = \sigma(u_i)\,(\sigma(w_i)\, s - 1) + 2

per head (WavLM, arXiv:2110.13900, section III-A): :math:`b` is an embedding of the
bucket that a distance falls into, the same for all layers; :math:`u_i` and :math:`w_i`
are sums of four linear functions each of the layer's input at frame i, and :math:`s` is
a weight of the layer.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.models.wav2vec2.components import SelfAttention

from espnet2_lamer.layers.working import in_type, linear

GATES = 8  # linear functions of a frame


def distance_buckets(frames: int, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket of every distance, ``[2 T - 1]``, from ``-(T - 1)`` to ``T - 1``.

    Half of the buckets are for keys after the query. Of either half, one half has a
    bucket for each distance, and the rest grow with its logarithm up to
    ``max_distance``, beyond which all share the last.
    """
    distance = torch.arange(1 - frames, frames)
    half = num_buckets // 2
    exact = half // 2
    far = distance.abs()
    # In float32, as it was trained: buckets at the borders follow the rounding.
    grown = torch.log(far.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    grown = (exact + (grown * (half - exact))).long().clamp(max=half - 1)
    return torch.where(far < exact, far, grown) + (distance > 0).long() * half


class RelativeAttention(SelfAttention):
    """torchaudio's ``SelfAttention`` with WavLM's gated bias beside its weights.

    Queries, keys and values are Linears of their own, as in every other family, so the
    loop over blocks treats them alike. The first layer's ``rel_attn_embed`` holds the
    biases of all: its bias is computed once and handed on.

    Args:
        embed_dim: D.
        num_heads: H.
        dropout: Of attention weights, in training.
        num_buckets: Buckets of distances, 0 in any layer but the first.
        max_distance: See :func:`distance_buckets`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        num_buckets: int = 0,
        max_distance: int = 0,
    ) -> None:
        super().__init__(embed_dim, num_heads, dropout)
        self.num_buckets, self.max_distance = num_buckets, max_distance
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, num_heads, 1, 1))
        self.gru_rel_pos_linear = nn.Linear(self.head_dim, GATES)
        if num_buckets:
            self.rel_attn_embed = nn.Embedding(num_buckets, num_heads)

    def position_bias(self, frames: int, dtype: torch.dtype) -> Tensor:
        """Bias ``[H, T, T]`` of every key to every query; of the first layer."""
        weight = in_type(self.rel_attn_embed.weight, dtype)
        buckets = distance_buckets(frames, self.num_buckets, self.max_distance)
        by_distance = weight[buckets.to(weight.device)].t()  # [H, 2 T - 1]
        # Row i of the result begins at distance -i.
        where = torch.arange(frames, device=weight.device)
        return by_distance[:, where - where[:, None] + frames - 1]

    def gates(self, x: Tensor) -> Tensor:
        """Gates ``[..., H]`` of frames ``[..., D]``, the layer's input."""
        heads = x.unflatten(-1, (self.num_heads, self.head_dim))
        sums = linear(self.gru_rel_pos_linear, heads).unflatten(-1, (2, -1)).sum(-1)
        u, w = sums.sigmoid().unbind(-1)
        scale = in_type(self.gru_rel_pos_const, x.dtype).flatten()
        return u * (w * scale - 1.0) + 2.0

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend within a padded grid, as torchaudio's loop over layers calls it.

        Args:
            x: ``[B, T, D]``.
            attention_mask: Added to the scores, ``[B, 1, T, T]``.
            position_bias: What the layer before returned; ``None`` in the first.
            key_padding_mask: Not used, torchaudio's.

        Returns:
            ``[B, T, D]``, and the bias ``[H, T, T]`` for the next layer.
        """
        if position_bias is None:
            position_bias = self.position_bias(x.shape[1], x.dtype)
        scores = self.gates(x).transpose(1, 2).unsqueeze(-1) * position_bias
        if attention_mask is not None:
            scores = scores + attention_mask
        parts = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (
            linear(part, x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in parts
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=scores, dropout_p=dropout)
        return linear(self.out_proj, y.transpose(1, 2).flatten(2)), position_bias
