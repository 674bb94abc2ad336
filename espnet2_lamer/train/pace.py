"""How fast a training is, and when it ends."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

# Updates that the mean duration is taken over.
WINDOW = 200


@dataclass
class Pace:
    """Times updates, and what lies between epochs.

    The pace is known after the ``first`` updates; ``epochs`` is the last epoch.
    """

    updates_per_epoch: int
    epochs: int
    first: int = 20
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._durations: deque[float] = deque(maxlen=WINDOW)
        # Validation and the model's file take about the same time every epoch.
        self._between: float | None = None
        self._count = 0
        self._last: float | None = None

    def begin(self) -> None:
        """Note that an epoch's training begins."""
        now = self.clock()
        if self._last is not None:
            self._between = now - self._last
        self._last = now

    def update(self) -> bool:
        """Note that an update was made; whether that makes the pace known."""
        now = self.clock()
        self._count += 1
        # The process's first also starts loaders and chooses kernels.
        if self._count > 1:
            self._durations.append(now - self._last)
        self._last = now
        return self._count == self.first

    @property
    def seconds_per_update(self) -> float | None:
        """Mean of the last updates; ``None`` until there are enough."""
        if self._count < self.first or not self._durations:
            return None
        return sum(self._durations) / len(self._durations)

    def seconds_left(self, epoch: int, update: int) -> float | None:
        """Seconds to the end of the last epoch, ``update`` updates into ``epoch``."""
        seconds = self.seconds_per_update
        if seconds is None:
            return None
        epochs = self.epochs - epoch
        updates = epochs * self.updates_per_epoch + self.updates_per_epoch - update
        # The last epoch is followed by a validation, too.
        return updates * seconds + (epochs + 1) * (self._between or 0.0)

    def eta(self, epoch: int, update: int) -> str:
        """Say the time left and the end's date; empty until the pace is known."""
        left = self.seconds_left(epoch, update)
        if left is None:
            return ""
        end = datetime.now() + timedelta(seconds=left)
        note = "" if self._between is not None else ", validation not counted"
        return f"{timedelta(seconds=round(left))} ({end:%Y-%m-%d %H:%M}{note})"
