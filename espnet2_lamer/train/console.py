"""A training and who started it: messages, the progress bar, requests to stop."""

import argparse
import logging
import multiprocessing
import os
import re
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.locks import working_on
from espnet2_lamer.fileio.system import naming

# Where processes that a training spawns find the file.
_LOG_VARIABLE = "ESPNET2_LAMER_TRAIN_LOG"
# Where a launcher of several processes says which one this is.
_RANKS = {"slurm": "SLURM_PROCID", "mpi": "OMPI_COMM_WORLD_RANK"}
# A shutdown, a user's Ctrl-C and, where there is one, Slurm's preemption.
STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1")
    if hasattr(signal, name)
)
# Slurm signals every process of a step, and so do parents that pass a signal on: what
# comes so soon after the first is the same request.
SAME_REQUEST_SECONDS = 10.0


class EpochBar(logging.Handler):
    """Shows ESPnet's epochs, which it only logs, as a progress bar."""

    def __init__(self, description: str) -> None:
        super().__init__()
        self.bar = tqdm(desc=description, unit="epoch", disable=not sys.stderr.isatty())

    def emit(self, record: logging.LogRecord) -> None:
        """Move the bar when ESPnet says that an epoch starts."""
        match = re.match(r"(\d+)/(\d+)epoch started", record.getMessage())
        if match:
            self.bar.total = int(match[2])
            self.bar.n = int(match[1]) - 1
            self.bar.refresh()

    def close(self) -> None:
        """Remove the bar."""
        self.bar.close()
        super().close()


@contextmanager
def one_training(args: argparse.Namespace) -> Iterator[None]:
    """Let no other process train into ``output_dir``; the first rank holds the lock.

    ``args`` are of one of ESPnet's tasks. Raises as ``fileio.locks.working_on``.
    """
    rank = args.dist_rank
    if rank is None:
        rank = int(os.environ.get(_RANKS.get(args.dist_launcher, "RANK"), 0))
    trains = args.output_dir and not args.print_config
    if rank or not trains or getattr(args, "dry_run", False):
        yield
        return
    with working_on(args.output_dir, shared=True):
        yield


@contextmanager
def child_log() -> Iterator[None]:
    """In a process that a training with :func:`espnet_log` spawned: log as it does."""
    path = os.environ.get(_LOG_VARIABLE)
    if path is None or multiprocessing.parent_process() is None:
        yield
        return
    with espnet_log(Path(path), bar=False):
        yield


@contextmanager
def espnet_log(path: Path, bar: bool = True) -> Iterator[None]:
    """Send what ESPnet logs and prints to a file; the console keeps errors only.

    The file is appended to, so that a resumed run keeps its history; its folder's name
    is that of the progress bar.

    Raises:
        OSError: With the log's folder, where a file of ESPnet's could not be written.
    """
    root = logging.getLogger()
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(naming(path.parent))
        stream = stack.enter_context(open(path, "a", encoding="utf-8"))
        stack.enter_context(warnings.catch_warnings())
        # ESPnet's own use of torch; nothing a user could change.
        warnings.simplefilter("ignore", FutureWarning)
        for handler in root.handlers:
            stack.callback(handler.setLevel, handler.level)
            handler.setLevel(logging.ERROR)
        file = logging.StreamHandler(stream)
        form = "%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s"
        file.setFormatter(logging.Formatter(form))
        for handler in [file, EpochBar(path.parent.name)] if bar else [file]:
            root.addHandler(handler)
            stack.callback(handler.close)
            stack.callback(root.removeHandler, handler)
        stack.callback(root.setLevel, root.level)
        root.setLevel(logging.INFO)
        outer = {k: v for k, v in os.environ.items() if k == _LOG_VARIABLE}
        stack.callback(os.environ.update, outer)
        os.environ[_LOG_VARIABLE] = str(path.resolve())
        stack.callback(os.environ.pop, _LOG_VARIABLE)
        stack.enter_context(redirect_stderr(stream))
        yield


class StopRequest:
    """Which signal asked the process to stop; 0: none."""

    signal: int = 0


def _say(number: int) -> None:
    """Answer a Ctrl-C at once: the update that is on may take a while."""
    if number == signal.SIGINT:
        # Not print: it may have been interrupted itself.
        os.write(2, b"\nstopping after this update, a checkpoint will be written\n")


@contextmanager
def stop_on_signals(act: Callable[[int], None] = _say) -> Iterator[StopRequest]:
    """Turn SIGTERM, SIGUSR1 and SIGINT into a request that the training loop looks at.

    Another one ten seconds later, from somebody who will not wait for the checkpoint,
    acts as it would have without this. A SIGINT that was ignored before stays so: it is
    meant for what runs in the foreground. ``act`` is called with each signal.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
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
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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

    with stop_on_signals(give) as request:
        yield request


@contextmanager
def hold_stop_signals() -> Iterator[None]:
    """Hold SIGTERM, SIGUSR1 and SIGINT back; they arrive when the block is left.

    Processes that are forked inside are born with them held back, so that none comes
    before :func:`ignore_stop_signals` does.
    """
    if not hasattr(signal, "pthread_sigmask"):  # where nothing forks either
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stop_signals(*_: object) -> None:
    """Let a helper process outlive a signal to all: its parent decides when it ends."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def run_espnet(task: Any, program: str, command: Sequence[str], log: Path) -> None:
    """Run one of ESPnet's tasks in this process; its log begins with the command.

    By hand ``program``, i.e. ``hubert_train`` or ``asr_train``, runs it. Options that
    ESPnet refuses raise ``RecipeError``; ``SystemExit`` is a stop asked for from
    outside, with a checkpoint written.
    """
    with espnet_log(log):
        by_hand = shlex.join(map(str, command))
        logging.info("python -m espnet2_lamer.bin.%s %s", program, by_hand)
        try:
            task.main(cmd=command)
        except SystemExit as error:
            if error.code in [128 + number for number in STOP_SIGNALS]:
                raise
            raise RecipeError(
                f"{log.parent}: ESPnet refused its options; read the message above "
                f"and {log}"
            ) from error
