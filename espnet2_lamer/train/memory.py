"""Memory of a training: counted where it can be, measured where it cannot."""

import copy
import ctypes
import resource
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors that share no memory."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def count_model(
    model: nn.Module, optimizer: torch.optim.Optimizer, gradient_copy: bool = False
) -> dict[str, int | None]:
    """Count what a training holds beside activations.

    Args:
        model: With all its parameters.
        optimizer: Holds what trains.
        gradient_copy: Distributed training keeps a second copy of the gradients, in
            the buckets that ranks exchange.

    Returns:
        Bytes of ``parameters`` (with buffers), ``gradients`` and ``optimizer`` state
        (see :func:`optimizer_bytes`).
    """
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        "parameters": count_bytes([*model.parameters(), *model.buffers()]),
        "gradients": count_bytes(trained) * (2 if gradient_copy else 1),
        "optimizer": optimizer_bytes(optimizer),
    }


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int | None:
    """Bytes of an optimizer's state, counted before its first update.

    The state of a new optimizer is counted after an update of stand-ins that have
    shapes but no data.

    Returns:
        ``None`` for an optimizer that cannot do that, or keeps no state in tensors of
        its own.
    """
    if not optimizer.state:
        optimizer = _stand_in(optimizer)
        try:
            # The class's own: schedules put another `step` into the object.
            type(optimizer).step(optimizer)
        except Exception:
            # Some need a closure, others values.
            return None
    return count_bytes(
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )


def _stand_in(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    stand_in = copy.copy(optimizer)
    stand_in.state = defaultdict(dict)
    stand_in.param_groups = []
    for group in optimizer.param_groups:
        parameters = []
        for parameter in group["params"]:
            parameter = nn.Parameter(torch.empty_like(parameter, device="meta"))
            parameter.grad = torch.empty_like(parameter)
            parameters.append(parameter)
        stand_in.param_groups.append({**group, "params": parameters})
    return stand_in


class PeakMemory:
    """Measures the most memory that a piece of a program needs above what it found.

    Attributes:
        method: How it is measured on this device, in words.
        bytes: The last measurement; ``None`` before.

    Args:
        device: ``"cuda"``, or ``"cpu"``, where only the memory of the whole process is
            known.
    """

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"
        self.method = (
            "torch.cuda.max_memory_allocated"
            if self.on_gpu
            else "peak resident memory of the process"
        )
        self.bytes: int | None = None

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Measure the block."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        else:
            _give_back()
            _reset_peak()
            before = _resident("VmRSS")
        yield
        after = torch.cuda.max_memory_allocated() if self.on_gpu else _resident("VmHWM")
        self.bytes = max(0, after - before)


def _give_back() -> None:
    """Return what the process has freed to the system: its use again counts, too."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        # Another C library: the measurement may then be too low.
        pass


def _reset_peak() -> None:
    """Make Linux forget the process's peak, which loading the model may have set."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        # Not allowed, or another system: the peak may then be too old and too high.
        pass


def _resident(field: str) -> int:
    """Resident memory of this process in bytes: ``VmRSS`` now, ``VmHWM`` at most."""
    try:
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
