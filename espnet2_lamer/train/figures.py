"""Figures of a training: kept on the device, read once per log interval."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from espnet2.train.reporter import SubReporter
from torch import Tensor

# Figures by name, and the weight of all of them; None: a plain mean over steps.
Read = tuple[Mapping[str, float], float | None]


def to_host_later(values: Tensor) -> Callable[[], Tensor]:
    """Begin to copy to the host; what is returned waits for the copy, and gives it.

    The device goes on meanwhile: who calls it after the next work was given to the
    device waits for what is behind that work, and leaves the device busy.
    """
    if not values.is_cuda:
        return lambda: values
    # torch makes the copy's memory a pinned one, else the call would wait.
    copy = values.to("cpu", non_blocking=True)
    event = torch.cuda.Event()
    event.record()

    def wait() -> Tensor:
        event.synchronize()
        return copy

    return wait


@dataclass(eq=False)
class Slot:
    """A place among a step's figures for those that are not known yet."""

    read: Callable[..., Read] | None = None
    values: Tensor | None = None

    def fill(self, read: Callable[..., Read], values: Tensor | None = None) -> None:
        """Say what gives the figures; of ``values``, if given, once on the host.

        They are a float32 vector on the device.
        """
        self.read, self.values = read, values


@dataclass(eq=False)
class _Step:
    entries: list[Slot | Read] = field(default_factory=list)
    slots: dict[str, Slot] = field(default_factory=dict)
    times: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(eq=False)
class Figures:
    """The steps of an epoch on their way to ESPnet's ``reporter``.

    ESPnet's reporter wants floats, and each float makes the host wait until the device
    has computed it. Steps are kept here until :meth:`flush` copies the figures of all
    of them at once, and hands them over one by one, as if they had just happened:
    ``after_step`` is called after each. A step may have several batches.
    """

    reporter: SubReporter
    after_step: Callable[[SubReporter], Any] = lambda reporter: None

    def __post_init__(self) -> None:
        self._closed: list[_Step] = []
        self._open = _Step()

    @property
    def count(self) -> int:
        """Steps of the epoch so far, the open one included if it has figures."""
        return self.reporter.count + len(self._closed) + bool(self._open.entries)

    def register(
        self, values: Mapping[str, float], weight: float | None = None
    ) -> None:
        """Add figures that the host knows to the open step."""
        if values:
            self._open.entries.append((values, weight))

    def took(self, **seconds: float) -> None:
        """Add seconds to those that the open step took so far."""
        for key, value in seconds.items():
            if key not in self._open.times:
                self._open.times[key] = {key: 0.0}
                self._open.entries.append((self._open.times[key], None))
            self._open.times[key][key] += value

    def slot(self, name: str) -> Slot:
        """Return a place in the open step, to be filled before the next flush."""
        if name not in self._open.slots:
            self._open.slots[name] = Slot()
            self._open.entries.append(self._open.slots[name])
        return self._open.slots[name]

    def next(self) -> None:
        """Close the open step."""
        self._closed.append(self._open)
        self._open = _Step()

    def flush(self) -> None:
        """Hand all closed steps over, in one transfer from the device."""
        steps, self._closed = self._closed, []
        slots = [slot for step in steps for slot in step.slots.values()]
        later = [slot for slot in slots if slot.values is not None]
        if later:
            sizes = [slot.values.numel() for slot in later]
            values = torch.cat([slot.values for slot in later]).cpu().split(sizes)
            for slot, part in zip(later, values, strict=True):
                slot.values = part
        for step in steps:
            for entry in step.entries:
                if isinstance(entry, Slot):
                    known = () if entry.values is None else (entry.values,)
                    entry = entry.read(*known)
                self.reporter.register(*entry)
            self.reporter.next()
            self.after_step(self.reporter)
