"""Real frames of a padded batch as rows, so that padding is never computed."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None


@dataclass(eq=False)
class Packing:
    """Which frames of a ``[B, T]`` grid are real; their rows are in row-major order.

    Attributes:
        batch: B.
        frames: T.
        lengths: Real frames of each utterance, ``[B]``.
        rows: Positions of real frames in the flattened grid, ``[R]``; ``None`` where
            no frame is padding.
    """

    batch: int
    frames: int
    lengths: Tensor
    rows: Tensor | None

    def __post_init__(self) -> None:
        columns = torch.arange(self.frames, device=self.lengths.device)
        #: Bool ``[B, T]``, true where a frame is real.
        self.real = columns < self.lengths[:, None]
        #: First row of each utterance and, last, R; int32 ``[B + 1]``.
        self.starts = F.pad(self.lengths.cumsum(0), (1, 0)).to(torch.int32)
        #: ``lengths`` on the host, unless a device would have to be asked for them.
        self.spans = self.lengths.tolist() if self.lengths.device.type == "cpu" else []
        self._has_kernel = varlen_attn is not None and _has_flash(self.lengths.device)

    @classmethod
    def of(cls, lengths: Tensor, frames: int, rows: Tensor | None = None) -> "Packing":
        """Describe a batch whose grid has ``frames`` columns.

        ``rows``, if the caller knows them, spare a device the question how many there
        are.
        """
        batch = len(lengths)
        if rows is None:
            columns = torch.arange(frames, device=lengths.device)
            rows = (columns < lengths[:, None]).flatten().nonzero().squeeze(1)
        full = len(rows) == batch * frames
        return cls(batch, frames, lengths, None if full else rows)

    @property
    def size(self) -> int:
        """R, the number of real frames."""
        return self.batch * self.frames if self.rows is None else len(self.rows)

    def pack(self, grid: Tensor) -> Tensor:
        """Take real frames: ``[B, T, ...]`` to ``[R, ...]``."""
        flat = grid.flatten(0, 1)
        return flat if self.rows is None else flat.index_select(0, self.rows)

    def unpack(self, packed: Tensor) -> Tensor:
        """Put rows ``[R, ...]`` into a grid ``[B, T, ...]`` that is 0 elsewhere."""
        if self.rows is not None:
            grid = packed.new_zeros(self.batch * self.frames, *packed.shape[1:])
            packed = grid.index_copy(0, self.rows, packed)
        return packed.unflatten(0, (self.batch, self.frames))

    def utterance_means(self, packed: Tensor) -> Tensor:
        """Give every row ``[R, N]`` the mean over its utterance's real frames."""
        grid = self.unpack(packed)  # [B, T, N], 0 at padding
        counts = self.lengths.clamp(min=1).view(-1, 1, 1)
        means = grid.sum(1, keepdim=True) / counts
        return self.pack(means.expand_as(grid))

    def row_of(self, positions: Tensor) -> Tensor:
        """Rows of real frames that are given by positions in the flattened grid."""
        if self.rows is None:
            return positions
        return (self.real.flatten().cumsum(0) - 1).index_select(0, positions)

    def attend(self, qkv: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
        """Let every real frame attend to those of its utterance.

        No mask is made: without padding there is nothing to mask, otherwise each
        utterance is a sequence of its own (on a GPU in half precision by the flash
        kernel for variable lengths, elsewhere one after the other).

        Args:
            qkv: Queries, keys and values ``[R, 3 D]``.
            heads: Number of heads.
            dropout: Probability, 0 but in training.

        Returns:
            ``[R, D]``, heads side by side.
        """
        packed = qkv.unflatten(-1, (3, heads, -1))  # [R, 3, H, d]
        if self.rows is None:
            return _attend(packed.unflatten(0, (self.batch, -1)), dropout).flatten(0, 1)
        if qkv.is_cuda and qkv.dtype != torch.float32 and dropout == 0.0:
            if self._has_kernel and packed.shape[-1] % 8 == 0:
                q, k, v = packed.unbind(1)
                where = (self.starts, self.starts, self.frames, self.frames)
                return varlen_attn(q, k, v, *where).flatten(1)
            _say_slow()
        spans = self.spans or self.lengths.tolist()
        parts = [_attend(x[None], dropout)[0] for x in packed.split(spans)]
        return torch.cat(parts)

    def attend_with_bias(
        self,
        qkv: Tensor,
        heads: int,
        gates: Tensor,
        bias: Tensor,
        dropout: float = 0.0,
    ) -> Tensor:
        """As :meth:`attend`, with ``gates[i, h] * bias[h, i, j]`` added to the scores.

        A branch of its own: no kernel for variable lengths takes a bias, and the biased
        scores ``[H, t, t]`` of an utterance are in memory. So utterances attend one
        after the other whatever the device; a batch without padding at once.

        Args:
            qkv: Queries, keys and values ``[R, 3 D]``.
            heads: H.
            gates: ``[R, H]``, of each frame as a query.
            bias: ``[H, T, T]`` for queries i and keys j of the longest utterance; those
                of a shorter one are its beginning.
            dropout: Probability, 0 but in training.

        Returns:
            ``[R, D]``, heads side by side.
        """
        packed = qkv.unflatten(-1, (3, heads, -1))  # [R, 3, H, d]
        if self.rows is None:
            shape = (self.batch, -1)
            y = _attend_with_bias(
                *(packed.unflatten(0, shape), gates.unflatten(0, shape), bias, dropout)
            )
            return y.flatten(0, 1)
        spans = self.spans or self.lengths.tolist()
        parts = [
            _attend_with_bias(x[None], g[None], bias[:, : len(g), : len(g)], dropout)[0]
            for x, g in zip(packed.split(spans), gates.split(spans), strict=True)
        ]
        return torch.cat(parts)


class _Products(torch.autograd.Function):
    r"""Attention by matrix products, :math:`\mathrm{softmax}(q k^T / \sqrt{d}) v`.

    On a CPU, in half precision: its flash kernel takes about twice the time there, and
    as long as this in float32. Probabilities are computed anew in the backward pass.
    All are ``[B * H, T, d]``.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return _probabilities(q, k) @ v

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = ctx.saved_tensors
        p = _probabilities(q, k)
        grad_p = grad @ v.transpose(1, 2)
        scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
        scores = scores.mul_(q.shape[-1] ** -0.5)
        grad_v = p.transpose(1, 2) @ grad
        return scores @ k, scores.transpose(1, 2) @ q, grad_v


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    scale = q.shape[-1] ** -0.5
    scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=scale)
    return scores.softmax(-1)


def _attend(packed: Tensor, dropout: float) -> Tensor:
    """Attention within each ``[T, 3, H, d]`` of a batch; returns ``[B, T, H * d]``."""
    half = packed.dtype in (torch.bfloat16, torch.float16)
    if half and not packed.is_cuda and dropout == 0.0:
        batch, heads = packed.shape[0], packed.shape[3]
        each = packed.permute(2, 0, 3, 1, 4).flatten(1, 2)  # [3, B * H, T, d]
        y = _Products.apply(*each.contiguous().unbind(0)).unflatten(0, (batch, heads))
        return y.transpose(1, 2).flatten(2)
    q, k, v = (x.transpose(1, 2) for x in packed.unbind(2))
    y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    return y.transpose(1, 2).flatten(2)


def _attend_with_bias(
    packed: Tensor, gates: Tensor, bias: Tensor, dropout: float
) -> Tensor:
    """Attention within ``[B, T, 3, H, d]``, gates ``[B, T, H]``, bias ``[H, T, T]``."""
    q, k, v = (x.transpose(1, 2) for x in packed.unbind(2))
    added = gates.transpose(1, 2).unsqueeze(-1) * bias
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=added, dropout_p=dropout)
    return y.transpose(1, 2).flatten(2)


_said: set[str] = set()


def _has_flash(device: torch.device) -> bool:
    """Whether a device is a GPU that the flash kernel is for (Ampere and later)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8


def _say_slow() -> None:
    if not _said:
        _said.add("varlen")
        logging.warning(
            "no attention kernel for variable lengths (it needs torch 2.10, found %s, "
            "a GPU of compute capability 8, and heads of a multiple of 8 dimensions): "
            "utterances of a batch attend one after the other",
            torch.__version__,
        )
