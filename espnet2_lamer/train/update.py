"""One optimizer update from one or several batches, and its learning rate."""

import logging
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from espnet2.schedulers.abs_scheduler import AbsBatchStepScheduler
from espnet2.train.reporter import SubReporter
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.hubert.statistics import average_figures, rank_and_ranks, to_floats
from espnet2_lamer.layers.inspection import adapter_kinds


@dataclass
class Updater:
    r"""Adds up gradients of batches, then updates.

    The gradient of an update is that of

    .. math:: \sum_i w_i L_i / \sum_i w_i

    over all batches and ranks, w the number of masked frames: the sum over all masked
    frames divided by their number, as fairseq has it, however they are spread.

    The model may be wrapped for distributed training, a per-update scheduler is
    stepped here, and no ``scaler`` (loss scale of fp16) is one that does nothing.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: Any
    options: Any

    def __post_init__(self) -> None:
        self.scaler = self.scaler or torch.amp.GradScaler("cuda", enabled=False)
        self.bad_in_a_row = 0
        self._begin()

    def _begin(self) -> None:
        self.pending = 0
        self._names: list[str] = []
        self._unit: torch.Tensor | None = None
        self._weight: torch.Tensor | float = 0.0

    def add(
        self, names: list[str], batch: dict, reporter: SubReporter, last: bool
    ) -> None:
        """Run one batch on the model's device forward and backward.

        Where it is the ``last`` of an update, ranks exchange gradients.
        """
        distributed = isinstance(self.model, DistributedDataParallel)
        # Ranks exchange gradients once per update.
        quiet = self.model.no_sync() if distributed and not last else nullcontext()
        with quiet:
            started = time.perf_counter()
            loss, figures, weight = self.model(**batch)
            means, total = average_figures(figures, weight)
            forward = time.perf_counter() - started
            # DDP divides by the number of ranks.
            _, ranks = rank_and_ranks()
            if self._unit is None:
                self._unit = total
            # Weights relative to the first batch's keep the loss's size, which fp16
            # and the log depend on; the last division is by their sum.
            share = weight.reshape(()) / self._unit * ranks
            loss = loss.reshape(()) * share
            started = time.perf_counter()
            self.scaler.scale(loss).backward()
            backward = time.perf_counter() - started
        self._weight = self._weight + total
        self._names = [*self._names, *names]
        self.pending += 1
        values = to_floats(means | {"": total})
        reporter.register(values, values.pop(""))
        reporter.register({"forward_time": forward, "backward_time": backward})

    def step(self, reporter: SubReporter) -> None:
        """Clip, update, step the schedule, report norms and times, and start anew.

        Too many updates in a row with a NaN or infinite gradient raise ``RecipeError``.
        """
        started = time.perf_counter()
        self.scaler.unscale_(self.optimizer)
        trained = [p for g in self.optimizer.param_groups for p in g["params"]]
        if self.pending > 1:
            factor = self._unit / self._weight
            for parameter in trained:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        figures = self._group_norms() if self.options.grad_norm_groups else {}
        options = self.options
        value = torch.nn.utils.clip_grad_norm_(
            trained, max_norm=options.grad_clip, norm_type=options.grad_clip_type
        ).item()
        good = math.isfinite(value)
        if good:
            self.bad_in_a_row = 0
        else:
            self._bad(value)
        if good or self.scaler.is_enabled():
            # With fp16 it skips the update by itself, and lowers the scale.
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if good and isinstance(self.scheduler, AbsBatchStepScheduler):
            self.scheduler.step()
        self.optimizer.zero_grad()
        self._begin()
        figures |= {
            "clip": 100.0 if value > self.options.grad_clip else 0.0,
            "loss_scale": self.scaler.get_scale(),
            "bad_update": 0.0 if good else 100.0,
            "optim_step_time": time.perf_counter() - started,
        }
        if good:
            figures["grad_norm"] = value
        reporter.register(figures)

    def _group_norms(self) -> dict[str, float]:
        squares: dict[str, torch.Tensor] = {}
        kinds = adapter_kinds(self.model)
        for parameter in self.model.parameters():
            if parameter.grad is None:
                continue
            group = kinds.get(parameter, "other")
            square = parameter.grad.float().square().sum()
            squares[group] = squares.get(group, 0.0) + square
        return to_floats({f"grad_norm_{k}": v.sqrt() for k, v in squares.items()})

    def _bad(self, norm: float) -> None:
        self.bad_in_a_row += 1
        where = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None and not parameter.grad.isfinite().all()
        ]
        what = (
            f"{len(where)} tensors are not finite, e.g. {where[:3]}, on the utterances "
            f"{self._names[:8]}"
        )
        logging.warning(
            f"update skipped: the gradient norm is {norm} ({self.bad_in_a_row} in a "
            f"row); {what}"
        )
        if self.bad_in_a_row >= self.options.max_bad_updates:
            raise RecipeError(
                f"{self.bad_in_a_row} updates in a row had a gradient that is not "
                f"finite; in the last, {what}. The last checkpoint is from before. "
                "Lower optim_conf.lr, use amp_dtype bf16 or none instead of fp16, or "
                "look for broken audio among these utterances"
            )


class PolynomialDecayLR(LRScheduler, AbsBatchStepScheduler):
    r"""Linear warm-up over w updates, then polynomial decay until update S.

    The rate of update s = 1, 2, ... is

    .. math::
        lr(s) = lr_{peak} \cdot \begin{cases} s / w & s \le w \\
        (1 - (s - 1 - w) / (S - w))^p & w < s \le S \\
        0 & s > S \end{cases}

    fairseq's ``polynomial_decay`` with end learning rate 0: after s - 1 updates the
    decay is that far on, so that the last update still has a rate above 0.

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
