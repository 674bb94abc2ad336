"""How fast a training goes, and when it ends."""

import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta

# Updates that the mean duration is taken over.
WINDOW = 200


class Pace:
    """Times updates, and what lies between epochs.

    Args:
        updates_per_epoch: Optimizer updates.
        epochs: Last epoch.
        first: Updates after which the pace is known.
        clock: Seconds, ever growing.
    """

    def __init__(
        self,
        updates_per_epoch: int,
        epochs: int,
        first: int = 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.updates_per_epoch = updates_per_epoch
        self.epochs = epochs
        self.first = first
        self._clock = clock
        self._durations: deque[float] = deque(maxlen=WINDOW)
        # Validation and the model's file take about the same time every epoch.
        self._between: float | None = None
        self._count = 0
        self._last: float | None = None

    def begin(self) -> None:
        """Note that an epoch's training begins."""
        now = self._clock()
        if self._last is not None:
            self._between = now - self._last
        self._last = now

    def update(self) -> bool:
        """Note that an update was made; whether that makes the pace known."""
        now = self._clock()
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
        """Time to the end of the last epoch.

        Args:
            epoch: The one that is on, from 1.
            update: Updates made in it.
        """
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
