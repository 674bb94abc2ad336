"""Masked prediction of units: the mask embedding, the head, and what a pass yields."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet2_lamer.layers.packing import Packing
from espnet2_lamer.layers.working import in_type, linear


class MaskedPredictionHead(nn.Module):
    r"""Project hidden states and compare them with one embedding per unit.

    .. math::
        P(c \mid h_t) \propto \exp\bigl(\cos(W h_t + b, e_c) / \tau\bigr)

    Parameter names are those of torchaudio's ``LogitGenerator``; its
    ``[K + 1, frames, D]`` tensor is never built. ``logit_temp`` is tau.
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
        projected = linear(self.final_proj, x)
        with torch.autocast(x.device.type, enabled=False):
            projected = F.normalize(projected.float(), dim=-1)
            units = F.normalize(self.label_embeddings.float(), dim=-1)
            return projected @ units.t() / self.logit_temp


class MaskEmbedding(nn.Module):
    """Vector that replaces masked frames, under torchaudio's ``mask_generator`` name.

    ``value [D]`` is the base's; ``None`` starts a new one, which trains.
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
        return torch.where(mask.unsqueeze(-1), in_type(self.mask_embedding, x.dtype), x)


@dataclass
class MaskedPrediction:
    """What one masked forward pass yields.

    ``packing`` says which frames of the ``[B, T]`` grid are real, ``rows [R, D]`` is
    the transformer's output at these (``None`` where only logits were asked for),
    ``masked [M]`` and ``unmasked [U]`` are positions
    of real frames in the flattened grid, ``logits [M, K]`` and ``unmasked_logits [U,
    K]`` belong to them (the latter two are ``None`` unless asked for).
    ``features [B, T, C]`` are those of the convolution stack, ``squared_features`` the
    mean square of its channels, summed over real frames, or ``None`` when the stack is
    frozen.
    """

    packing: Packing
    features: Tensor
    rows: Tensor | None
    masked: Tensor
    logits: Tensor
    unmasked: Tensor | None
    unmasked_logits: Tensor | None
    squared_features: Tensor | None

    @property
    def real(self) -> Tensor:
        """Bool ``[B, T]``, true at frames that are not padding."""
        return self.packing.real

    @property
    def hidden(self) -> Tensor:
        """The transformer's output ``[B, T, D]``, 0 at padding."""
        return self.packing.unpack(self.rows)
