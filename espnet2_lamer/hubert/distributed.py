"""Sums over the ranks of a distributed run."""

import torch
from torch import Tensor


def is_distributed() -> bool:
    """Whether this process is one of several ranks."""
    distributed = torch.distributed
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def global_sums(values: list[Tensor]) -> list[Tensor]:
    """Add tensors up over all ranks, in one message and without gradient.

    Args:
        values: Floating-point tensors of any shapes, the same on every rank.

    Returns:
        Sums of the same shapes; in a run of one process the values themselves.
    """
    values = [value.detach() for value in values]
    if not is_distributed():
        return values
    flat = torch.cat([value.float().reshape(-1) for value in values])
    torch.distributed.all_reduce(flat)
    parts = flat.split([value.numel() for value in values])
    return [
        part.reshape(value.shape) for part, value in zip(parts, values, strict=True)
    ]
