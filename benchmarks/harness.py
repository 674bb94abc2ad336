"""Time several ways of doing one thing, in turns, so that a machine's noise cancels."""

import gc
import random
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

DTYPES = {"fp32": None, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """Something to time: ``prepare`` runs before every timed ``run``, untimed."""

    run: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Ratio:
    """Time of one case over that of another.

    ``median``, ``low`` and ``high`` are quartiles of the ratio within a round;
    ``of_minima`` is the ratio of the two fastest runs.
    """

    median: float
    low: float
    high: float
    of_minima: float

    def __str__(self) -> str:
        """Format for a table."""
        return (
            f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}], "
            f"min {self.of_minima:.2f}"
        )


@dataclass
class Timings:
    """Seconds of every case, one per round; ``cpu`` are this process's own."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)

    def of_cpu(self) -> "Timings":
        """The same by CPU seconds, which other processes disturb less."""
        return Timings(self.cpu)

    def median(self, name: str) -> float:
        """Median seconds of a case."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, reference: str) -> Ratio:
        """Compare two cases round by round."""
        pairs = zip(self.seconds[name], self.seconds[reference], strict=True)
        ratios = [one / other for one, other in pairs]
        low, median, high = (
            statistics.quantiles(ratios, n=4, method="inclusive")
            if len(ratios) > 1
            else ratios * 3
        )
        fastest = min(self.seconds[name]) / min(self.seconds[reference])
        return Ratio(median, low, high, fastest)


def interleave(
    cases: dict[str, Case],
    rounds: int,
    warmup: int = 1,
    synchronize: Callable[[], Any] = lambda: None,
    description: str = "",
) -> Timings:
    """Time every case once per round, in an order that differs from round to round.

    Args:
        cases: What to time.
        rounds: Timed rounds.
        warmup: Rounds before them that do not count.
        synchronize: Waits for the device, before the clock is read.
        description: Text of the progress bar.

    Returns:
        Wall-clock seconds, and CPU seconds of all threads of this process.
    """
    timings = Timings({name: [] for name in cases}, {name: [] for name in cases})
    order = random.Random(0)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for number in tqdm(
            range(-warmup, rounds), desc=description, leave=False, disable=None
        ):
            # A fixed order would let one case always follow the same other one.
            for name in order.sample(list(cases), len(cases)):
                cases[name].prepare()
                synchronize()
                start, cpu_start = time.perf_counter(), time.process_time()
                cases[name].run()
                synchronize()
                if number >= 0:
                    timings.seconds[name].append(time.perf_counter() - start)
                    timings.cpu[name].append(time.process_time() - cpu_start)
    finally:
        if collecting:
            gc.enable()
    return timings


def autocast(device: str, dtype: str) -> AbstractContextManager:
    """Return the autocast context of ``fp32`` (none) or ``bf16``."""
    if DTYPES[dtype] is None:
        return nullcontext()
    return torch.autocast(device, dtype=DTYPES[dtype])


def synchronizer(device: str) -> Callable[[], Any]:
    """Return what waits for ``device``."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None
