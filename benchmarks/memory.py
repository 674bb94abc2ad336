"""Count memory: what autograd keeps, what torch allocates, what the process holds."""

import json
import multiprocessing
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile


def saved_bytes(forward: Callable[[], Any], ignore: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass.

    Every storage counts once, in full, however many views of it are kept.

    Args:
        forward: Runs the forward pass and returns what holds the graph.
        ignore: Tensors that exist anyway: inputs and parameters.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in ignore}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        # The graph keeps the tensors alive, so that no address is used twice.
        graph = forward()
    del graph
    return sum(kept.values())


def peak_allocated(run: Callable[[], Any]) -> int:
    """Peak of the bytes that torch's CPU allocator hands out during ``run``.

    Summed from the profiler's allocation events, so temporaries inside an operator
    count as well.
    """
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        run()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    events = [event for event in events if event["name"] == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    total = peak = 0
    for event in events:
        total += event["args"]["Bytes"]
        peak = max(peak, total)
    return peak


def _status(name: str) -> int:
    """A size from /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return _status("VmRSS")


def peak_resident() -> int:
    """Most bytes of memory that this process held at a time."""
    return _status("VmHWM")


def reset_peak_resident() -> None:
    """Let :func:`peak_resident` start again from what is held now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


class AnonymousPeak:
    """Most anonymous memory (RssAnon) of this process while a block runs.

    Looked at every few milliseconds: the kernel keeps no record of it. File pages,
    which it can drop at any time, do not count.

    Attributes:
        bytes: The peak so far.
    """

    def __init__(self, interval: float = 0.005) -> None:
        self.bytes = 0
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, _status("RssAnon"))
            if self._stop.wait(self._interval):
                return

    def __enter__(self) -> "AnonymousPeak":
        """Start looking."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Look a last time."""
        self._stop.set()
        self._thread.join()


def written() -> int:
    """Bytes that this process has passed to the kernel to write, wherever to."""
    for line in Path("/proc/self/io").read_text(encoding="utf-8").splitlines():
        if line.startswith("wchar:"):
            return int(line.split()[1])
    raise OSError("/proc/self/io has no wchar")


def call(function: Callable[..., Any], *arguments: Any, fresh: bool = True) -> Any:
    """Call a function in a new process (or, for tests, in this one).

    Args:
        function: A module's function.
        arguments: Its arguments; they and the result are pickled.
        fresh: Whether to start a process.
    """
    if not fresh:
        return function(*arguments)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()
