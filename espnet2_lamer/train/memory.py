"""How much audio a device holds at a time, from the memory that trials took."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.layers.config import check_values
from espnet2_lamer.train.trial import DoesNotFit, Trial

AUTO = "auto"
# Of the memory that is there. The rest is for gaps between blocks of other sizes, and
# for what only later updates allocate.
SHARE = 0.85
# Rows of the two trials; fewer in the second where as many do not fit.
_ROWS = 1, (4, 2)


@dataclass(frozen=True)
class Fit:
    """What a pass over batches of rows of one length takes, in bytes.

    Its peak is ``fixed`` (the model and whatever does not depend on the batch) and
    ``per_second`` of audio. ``available`` is what torch may use in all, ``later`` what
    updates allocate beside batches.
    """

    fixed: float
    per_second: float
    available: int
    later: int

    @property
    def seconds(self) -> float:
        r"""Most audio at a time.

        .. math:: t = (0.85 \cdot available - later - fixed) / per\_second
        """
        return (SHARE * self.available - self.later - self.fixed) / self.per_second


def read_device_bins(value: int | str) -> int | None:
    """Read the option: samples, or ``None`` for ``auto``; else ``RecipeError``."""
    if value == AUTO:
        return None
    right = isinstance(value, int) or (isinstance(value, str) and value.isdigit())
    right = right and not isinstance(value, bool) and int(value) > 0
    check_values("", ("device_bins", value, right, "auto, or samples above 0"))
    return int(value)


def fit_memory(trial: Callable[[int], Trial], available: int, later: int) -> Fit | None:
    """Measure two batches, of ``trial(rows)`` rows each; bytes as in :class:`Fit`.

    Returns:
        ``None`` where one row fits, and no two do.

    Raises:
        DoesNotFit: One row does not fit.
        ValueError: The device does not tell what a batch takes.
    """
    one, several = _ROWS
    small = trial(one)
    for rows in several:
        try:
            large = trial(rows)
        except DoesNotFit:
            continue
        per_second = (large.peak - small.peak) / (large.audio - small.audio)
        if per_second <= 0:
            raise ValueError("larger batches take no more memory")
        fixed = small.peak - per_second * small.audio
        return Fit(fixed, per_second, available, later)
    return None


def cuda_memory(model: nn.Module, ranks: int) -> tuple[int, int]:
    """Bytes of this process's GPU that torch may use, and that updates will allocate.

    The latter are two moments of every weight that trains, and between ranks the
    buckets in which gradients travel.
    """
    free, _ = torch.cuda.mem_get_info()
    trained = [p for p in model.parameters() if p.requires_grad]
    later = sum(p.numel() * p.element_size() for p in trained)
    return free + torch.cuda.memory_reserved(), (2 + (ranks > 1)) * later


def device_bins(fit: Fit | None, row: int) -> int:
    """Most samples at a time, at least a ``row``, which fits."""
    return row if fit is None else max(row, int(fit.seconds * SAMPLE_RATE))
