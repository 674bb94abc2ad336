"""Learning-rate schedules that ESPnet lacks."""

import torch
from espnet2.schedulers.abs_scheduler import AbsBatchStepScheduler
from torch.optim.lr_scheduler import LRScheduler


class PolynomialDecayLR(LRScheduler, AbsBatchStepScheduler):
    r"""Linear warm-up, then polynomial decay.

    The rate of update s = 1, 2, ... is

    .. math::
        lr(s) = lr_{peak} \cdot \begin{cases} s / w & s \le w \\
        (1 - (s - 1 - w) / (S - w))^p & w < s \le S \\
        0 & s > S \end{cases}

    fairseq's ``polynomial_decay`` with end learning rate 0: after s - 1 updates the
    decay is that far on, so that the last update still has a rate above 0.

    Args:
        optimizer: Its ``lr`` is the peak.
        warmup_steps: w.
        total_steps: S, the number of updates.
        power: p.
        last_epoch: Step to start from.

    Raises:
        ValueError: ``warmup_steps`` is not below ``total_steps``.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        warmup_steps: int = 32000,
        total_steps: int = 400000,
        power: float = 1.0,
        last_epoch: int = -1,
    ) -> None:
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(
                f"scheduler_conf: found warmup_steps {warmup_steps} and total_steps "
                f"{total_steps}, expected 0 <= warmup_steps < total_steps"
            )
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.power = power
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Return the rate of the next update per parameter group."""
        step = self.last_epoch + 1
        if step <= self.warmup_steps:
            factor = step / self.warmup_steps
        else:
            span = self.total_steps - self.warmup_steps
            left = max(0.0, 1.0 - (step - 1 - self.warmup_steps) / span)
            factor = left**self.power
        return [base * factor for base in self.base_lrs]
