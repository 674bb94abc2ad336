"""What ranks tell each other beside gradients and figures: signals, waits for audio."""

from collections.abc import Sequence

import torch

from espnet2_lamer.hubert.statistics import is_distributed, rank_and_ranks
from espnet2_lamer.train.console import STOP_SIGNALS, StopRequest


def say(request: StopRequest, waited: float) -> list[float]:
    """Return what a rank's update tells the others, to be added up over ranks.

    Which signal asked it to stop, one number for each, and in its own place among the
    ranks how many seconds it ``waited`` for audio. A single process says nothing.
    """
    if not is_distributed():
        return []
    rank, ranks = rank_and_ranks()
    waits = [0.0] * ranks
    waits[rank] = waited
    return [float(request.signal == number) for number in STOP_SIGNALS] + waits


def stop_signal(request: StopRequest, said: Sequence[float]) -> int:
    """Return the signal that any rank had got when it :func:`said <say>` so; else 0."""
    if not is_distributed():
        return request.signal
    asked = zip(STOP_SIGNALS, said, strict=False)
    return max((int(number) for number, ranks in asked if ranks), default=0)


def waits(said: Sequence[float], waited: float) -> Sequence[float]:
    """Return the seconds that each rank waited; of a single process ``waited``."""
    return said[len(STOP_SIGNALS) :] if is_distributed() else [waited]


def anyone_stops(request: StopRequest, device: str) -> int:
    """Ask all ranks at once, between updates; the signal of one that stops, or 0."""
    if not is_distributed():
        return request.signal
    flag = torch.tensor(request.signal, device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return int(flag)
