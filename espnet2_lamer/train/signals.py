"""Stop requests from outside: Slurm's preemption, a shutdown, a user's Ctrl-C."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Slurm signals every process of a step, and so do parents that pass a signal on: what
# comes so soon after the first is the same request.
SAME_REQUEST_SECONDS = 10.0


class StopRequest:
    """Whether, and by which signal, the process was asked to stop."""

    signal: int = 0


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM, SIGUSR1 and SIGINT into a request that the training loop looks at.

    Another one ten seconds later, from somebody who will not wait for the checkpoint,
    acts as it would have without this. A SIGINT that was ignored before stays so: it is
    meant for what runs in the foreground.
    """
    request = StopRequest()
    with _handling(request, _say):
        yield request


@contextmanager
def pass_signals_on() -> Iterator[StopRequest]:
    """Give SIGTERM, SIGUSR1 and SIGINT to the child processes, and wait as before.

    A training on several GPUs has a process for each, and a parent that only waits:
    without this a signal ends the parent alone, and the training goes on without it.
    """

    def give(number: int) -> None:
        for child in multiprocessing.active_children():
            with suppress(ProcessLookupError):
                os.kill(child.pid, number)

    request = StopRequest()
    with _handling(request, give):
        yield request


@contextmanager
def hold_stop_signals() -> Iterator[None]:
    """Hold SIGTERM, SIGUSR1 and SIGINT back; they arrive when the block is left.

    Processes that are forked inside are born with them held back, so that none comes
    before :func:`ignore_stop_signals` does.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stop_signals(*_: object) -> None:
    """Let a helper process outlive a signal to all: its parent decides when it ends."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _say(number: int) -> None:
    """Answer a Ctrl-C at once: the update that is on may take a while."""
    if number == signal.SIGINT:
        # Not print: it may have been interrupted itself.
        os.write(2, b"\nstopping after this update, a checkpoint will be written\n")


@contextmanager
def _handling(request: StopRequest, act: Callable[[int], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[float] = []

    def note(number: int, frame: object) -> None:
        now = time.monotonic()
        if first and now - first[0] > SAME_REQUEST_SECONDS:
            signal.signal(number, before[number])
            os.kill(os.getpid(), number)
            return
        if not first:
            first.append(now)
            request.signal = number
        act(number)

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    if before[signal.SIGINT] is signal.SIG_IGN:
        del before[signal.SIGINT]
    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
