"""One optimizer update from one or several batches, and its learning rate."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from espnet2.schedulers.abs_scheduler import AbsBatchStepScheduler
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.hubert.statistics import (
    figure_means,
    figure_sums,
    is_distributed,
    rank_and_ranks,
)
from espnet2_lamer.layers.inspection import adapter_kinds
from espnet2_lamer.train.figures import Figures, Slot, to_host_later


@dataclass(frozen=True)
class _Verdict:
    """What the host has to know of an update: was it good, what did ranks say."""

    numbers: Callable[[], Tensor]
    slot: Slot
    norms: Tensor
    tensors: list[str]
    utterances: list[str]
    seconds: float


@dataclass
class Updater:
    r"""Adds up gradients of batches, then updates.

    The gradient of an update is that of

    .. math:: \sum_i w_i L_i / \sum_i w_i

    over all batches and ranks, w the number of masked frames: the sum over all masked
    frames divided by their number, as fairseq has it, however they are spread.

    The model may be wrapped for distributed training, a per-update scheduler is
    stepped here, and no ``scaler`` (loss scale of fp16) is one that does nothing.

    Ranks exchange figures in one message per update. Where the optimizer is a fused one
    the device itself skips an update whose gradient is not finite, and the host looks
    one update later whether it did, before it sets the next one's learning rate: it
    never waits for the update that is on. Otherwise it looks at once.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: Any
    options: Any

    def __post_init__(self) -> None:
        self.scaler = self.scaler or torch.amp.GradScaler("cuda", enabled=False)
        groups = self.optimizer.param_groups
        fused = all(group.get("fused") for group in groups)
        #: Whether bad updates are skipped by the device. A loss scale is the host's.
        self.on_device = fused and not self.scaler.is_enabled()
        self._tensors = {p: name for name, p in self.model.named_parameters()}
        self.bad_in_a_row = 0
        #: Learning rate of the last update, of the first group of weights.
        self.rate = 0.0
        #: What ranks said at the last update that is settled, added up.
        self.said: list[float] = []
        self._verdict: _Verdict | None = None
        self._begin()

    def _begin(self) -> None:
        self.pending = 0
        self._names: list[str] = []
        self._unit: Tensor | None = None
        # Of each batch: its step's place, names of figures, their sums.
        self._sums: list[tuple[Slot, list[str], Tensor]] = []

    def add(self, names: list[str], batch: dict, figures: Figures, last: bool) -> None:
        """Run one batch on the model's device forward and backward.

        Where it is the ``last`` of an update, ranks exchange gradients.
        """
        distributed = isinstance(self.model, DistributedDataParallel)
        # Ranks exchange gradients once per update.
        quiet = self.model.no_sync() if distributed and not last else nullcontext()
        with quiet:
            started = time.perf_counter()
            loss, stats, weight = self.model(**batch)
            forward = time.perf_counter() - started
            # DDP divides by the number of ranks.
            _, ranks = rank_and_ranks()
            if self._unit is None:
                self._unit = self._first_weight(weight, ranks)
            # Weights relative to the first batch's keep the loss's size, which fp16
            # depends on; the last division is by their sum.
            share = weight.reshape(()) / self._unit * ranks
            loss = loss.reshape(()) * share
            started = time.perf_counter()
            self.scaler.scale(loss).backward()
            backward = time.perf_counter() - started
        self._names = [*self._names, *names]
        self.pending += 1
        self._sums.append((figures.slot("batches"), *figure_sums(stats, weight)))
        figures.took(forward_time=forward, backward_time=backward)

    def _first_weight(self, weight: Tensor, ranks: int) -> Tensor:
        """Weight of the update's first batch, over all ranks."""
        if ranks == 1:
            return weight.detach().reshape(()).float()
        # The model has had to add it up: a message less.
        return getattr(self.model, "module", self.model).total_weight

    def step(self, figures: Figures, said: Sequence[float] = ()) -> None:
        """Clip, update, step the schedule, report norms and times, and start anew.

        ``said`` are numbers of this rank, which ``self.said`` has of all ranks after
        :meth:`settle`; as many on each. A single process says nothing.

        Too many updates in a row with a NaN or infinite gradient raise ``RecipeError``.
        """
        started = time.perf_counter()
        weight, others = self._exchange(said)
        self.scaler.unscale_(self.optimizer)
        parameters = [
            parameter
            for group in self.optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if self.pending > 1:
            gradients = [parameter.grad for parameter in parameters]
            torch._foreach_mul_(gradients, self._unit / weight)
        if self.options.grad_norm_groups:
            self._group_norms(figures.slot("groups"))
        # As torch's own get_total_norm, which does not give those of the tensors.
        kind = self.options.grad_clip_type
        gradients = [parameter.grad for parameter in parameters]
        norms = torch.stack(torch._foreach_norm(gradients, kind))
        norm = torch.linalg.vector_norm(norms, kind)
        torch.nn.utils.clip_grads_with_norm_(parameters, self.options.grad_clip, norm)
        # Before the rate is used, and with this update's work given to the device.
        self.settle()
        self.rate = self.optimizer.param_groups[0]["lr"]
        numbers = to_host_later(torch.cat([norm.reshape(1).float(), others]))
        if self.on_device:
            self.optimizer.found_inf = torch.where(norm.isfinite(), 0.0, 1.0)
            self.optimizer.step()
            del self.optimizer.found_inf
        elif self.scaler.is_enabled() or math.isfinite(numbers()[0].item()):
            # With fp16 it skips the update by itself, and lowers the scale.
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()
        self._verdict = _Verdict(
            numbers,
            figures.slot("update"),
            norms,
            [self._tensors[parameter] for parameter in parameters],
            self._names,
            time.perf_counter() - started,
        )
        self._begin()
        if not self.on_device:
            self.settle()

    @property
    def is_settled(self) -> bool:
        """Whether the host knows all of the last update."""
        return self._verdict is None

    def settle(self) -> None:
        """Step the schedule and report, if the last update was good; else count it.

        Raises:
            RecipeError: Too many updates in a row were bad.
        """
        if self._verdict is None:
            return
        verdict, self._verdict = self._verdict, None
        value, *self.said = verdict.numbers().tolist()
        good = math.isfinite(value)
        if good:
            self.bad_in_a_row = 0
            if isinstance(self.scheduler, AbsBatchStepScheduler):
                self.scheduler.step()
        else:
            self._bad(value, verdict)
        found = {
            "clip": 100.0 if value > self.options.grad_clip else 0.0,
            "loss_scale": self.scaler.get_scale(),
            "bad_update": 0.0 if good else 100.0,
            "optim_step_time": verdict.seconds,
        }
        if good:
            found["grad_norm"] = value
        for index, group in enumerate(self.optimizer.param_groups):
            found[f"optim0_lr{index}"] = group["lr"]
        verdict.slot.fill(lambda: (found, None))

    def _exchange(self, said: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Add figures up over ranks; the update's whole weight, and what all said."""
        vectors = [vector for _, _, vector in self._sums]
        flat = torch.cat(vectors)
        others = flat.new_empty(0)
        if is_distributed():
            own = torch.tensor(list(said), dtype=torch.float32)
            if flat.is_cuda:
                own = own.pin_memory().to(flat.device, non_blocking=True)
            flat = torch.cat([flat, own])
            torch.distributed.all_reduce(flat)
            flat, others = flat.split([flat.numel() - len(said), len(said)])
        parts = flat.split([vector.numel() for vector in vectors])
        weight = sum(part[-1] for part in parts)
        by_slot: dict[Slot, list[tuple[list[str], Tensor]]] = {}
        for (slot, names, _), part in zip(self._sums, parts, strict=True):
            by_slot.setdefault(slot, []).append((names, part))
        for slot, batches in by_slot.items():
            names, sums = zip(*batches, strict=True)
            slot.fill(partial(figure_means, names), torch.cat(sums))
        return weight, others

    def _group_norms(self, slot: Slot) -> None:
        squares: dict[str, Tensor] = {}
        kinds = adapter_kinds(self.model)
        for parameter in self.model.parameters():
            if parameter.grad is None:
                continue
            group = kinds.get(parameter, "other")
            square = parameter.grad.float().square().sum()
            squares[group] = squares.get(group, 0.0) + square
        names = [f"grad_norm_{group}" for group in squares]

        def read(norms: Tensor) -> tuple[dict[str, float], None]:
            return dict(zip(names, norms.tolist(), strict=True)), None

        slot.fill(read, torch.stack([square.sqrt() for square in squares.values()]))

    def _bad(self, norm: float, verdict: _Verdict) -> None:
        self.bad_in_a_row += 1
        finite = verdict.norms.isfinite().tolist()
        where = [
            name for name, good in zip(verdict.tensors, finite, strict=True) if not good
        ]
        what = (
            f"{len(where)} tensors are not finite, e.g. {where[:3]}, on the utterances "
            f"{verdict.utterances[:8]}"
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


def fused_option(
    name: str, conf: Mapping[str, Any], parameters: Sequence[Tensor]
) -> dict[str, bool]:
    """Return ``fused=True`` where all parameters are a GPU's, unless one has chosen.

    One kernel then updates all weights, and can skip an update. On a CPU torch has it,
    too, but it rounds otherwise than trainings did so far.
    """
    chosen = {"fused", "foreach", "capturable", "differentiable"} & conf.keys()
    on_gpu = all(parameter.is_cuda for parameter in parameters)
    if name not in ("adam", "adamw") or chosen or not on_gpu:
        return {}
    logging.info("optim: %s in one kernel (optim_conf.fused)", name)
    return {"fused": True}


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state, but compute as this process does: fused on its GPU, or not."""
    groups = zip(state["param_groups"], optimizer.param_groups, strict=True)
    for saved, own in groups:
        saved |= {key: own[key] for key in ("fused", "foreach") if key in own}
    optimizer.load_state_dict(state)


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
        shape = self.warmup_steps, self.total_steps, self.power
        factor = _share_of_peak(self.last_epoch + 1, *shape)
        return [base * factor for base in self.base_lrs]


def polynomial_rates(
    warmup_steps: int = 32000, total_steps: int = 400000, power: float = 1.0
) -> list[float]:
    """Rates of all updates of :class:`PolynomialDecayLR`, as shares of the peak."""
    steps = range(1, total_steps + 1)
    return [_share_of_peak(s, warmup_steps, total_steps, power) for s in steps]


def _share_of_peak(step: int, warmup: int, total: int, power: float) -> float:
    if step <= warmup:
        return step / warmup
    left = max(0.0, 1.0 - (step - 1 - warmup) / (total - warmup))
    return left**power
