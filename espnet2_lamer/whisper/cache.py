"""Keys and values of Whisper's decoder, kept in memory that is taken once."""

from collections.abc import Sequence

import torch
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]


class BlockCache:
    """Keys and values of one decoder block, of its past tokens and of the memory.

    Those of tokens lie in two tensors ``[B, heads, size, D / heads]``, of whose places
    the first ``length`` are written; the memory's are ``[B, heads, T, D / heads]``, or
    ``[1, ...]`` where all hypotheses are of one utterance.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.length = 0
        self.memory: KeysValues | None = None
        self._past: KeysValues | None = None

    def append(self, keys: Tensor, values: Tensor) -> KeysValues:
        """Write new tokens ``[B, heads, U, D / heads]``; return views of all so far.

        Raises:
            ValueError: There is no place for them.
        """
        start, self.length = self.length, self.length + keys.shape[2]
        if self.length > self.size:
            raise ValueError(f"{self.length} tokens in a cache for {self.size}")
        if self._past is None:
            shape = (*keys.shape[:2], self.size, keys.shape[3])
            self._past = keys.new_empty(shape), values.new_empty(shape)
        views = tuple(past[: len(keys), :, : self.length] for past in self._past)
        for view, new in zip(views, (keys, values), strict=True):
            view[:, :, start:] = new
        return views

    def reorder(self, rows: Tensor) -> None:
        """Let row i go on from what was row ``rows[i]``; there may be more or fewer."""
        if self._past is None:
            return
        kept = []
        for past in self._past:
            chosen = past[:, :, : self.length].index_select(0, rows)
            if len(rows) > len(past):
                past = past.new_empty(len(rows), *past.shape[1:])
            past[: len(rows), :, : self.length] = chosen
            kept.append(past)
        self._past = kept[0], kept[1]


class DecoderCache:
    """A :class:`BlockCache` for each block, for up to ``size`` tokens with the prompt.

    Nothing of it may be differentiated.

    Attributes:
        mask: ``key_mask`` of the memory, found with the first tokens.
    """

    def __init__(self, blocks: int, size: int) -> None:
        self.blocks = [BlockCache(size) for _ in range(blocks)]
        self.mask: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of past tokens, the prompt's among them."""
        return self.blocks[0].length

    def reorder(self, rows: Sequence[int], device: torch.device) -> None:
        """Let hypothesis i go on from what was hypothesis ``rows[i]``."""
        index = torch.tensor(rows, device=device)
        for block in self.blocks:
            block.reorder(index)
