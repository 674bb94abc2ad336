"""Masked-prediction head: cosine logits by one matrix product (HuBERT, Lamer Eq. 6)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MaskedPredictionHead(nn.Module):
    r"""Project hidden states and compare them with one embedding per unit.

    .. math::
        P(c \mid h_t) \propto \exp\bigl(\cos(W h_t + b, e_c) / \tau\bigr)

    Parameter names are those of torchaudio's ``LogitGenerator``; its
    ``[K + 1, frames, D]`` tensor is never built.

    Args:
        encoder_embed_dim: Size of a hidden state.
        num_classes: K.
        final_dim: Size of the projection and of the unit embeddings.
        logit_temp: tau.
    """

    def __init__(
        self,
        encoder_embed_dim: int,
        num_classes: int,
        final_dim: int,
        logit_temp: float = 0.1,
    ) -> None:
        super().__init__()
        # Zero-mean, so that units start nearly orthogonal; fairseq's uniform [0, 1]
        # puts them all in a narrow cone (a stated departure).
        start = torch.randn(num_classes, final_dim) / final_dim**0.5
        self.label_embeddings = nn.Parameter(start)
        self.final_proj = nn.Linear(encoder_embed_dim, final_dim)
        self.logit_temp = logit_temp

    def forward(self, x: Tensor) -> Tensor:
        """Map hidden states ``[M, D]`` to float32 logits ``[M, K]``."""
        projected = self.final_proj(x)
        with torch.autocast(x.device.type, enabled=False):
            projected = F.normalize(projected.float(), dim=-1)
            units = F.normalize(self.label_embeddings.float(), dim=-1)
            return projected @ units.t() / self.logit_temp


class MaskEmbedding(nn.Module):
    """Vector that replaces masked frames, under torchaudio's ``mask_generator`` name.

    Args:
        embed_dim: Size of a frame's vector.
        value: The base's embedding; ``None`` starts a new one, which trains.
        frozen: Whether the base's embedding stays as it is.
    """

    def __init__(
        self, embed_dim: int, value: Tensor | None = None, frozen: bool = True
    ) -> None:
        super().__init__()
        known = value is not None
        start = value.clone() if known else torch.rand(embed_dim)
        self.mask_embedding = nn.Parameter(start, requires_grad=not (known and frozen))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Replace ``x [B, T, D]`` where ``mask [B, T]`` is true."""
        return torch.where(mask.unsqueeze(-1), self.mask_embedding.to(x.dtype), x)
