"""Where parallel work runs: processes of this machine, or workers of a Dask cluster.

Every parallel step of the recipe is a call of joblib. Inside :func:`workers` those
calls run on the cluster whose scheduler is named; without one, joblib starts its own
processes.
"""

import asyncio
import ctypes
import importlib.metadata
import logging
import os
import pickle
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr
from typing import Any, TextIO

from espnet2_lamer.errors import RecipeError, require
from espnet2_lamer.fileio.system import LogFile
from espnet2_lamer.fileio.trust import s3prl_files_trusted, trusting_s3prl_files

WORKER_KILLED = (
    "a worker process was killed, most often because memory ran out; lower --nj and "
    "run the same command again, finished parts are kept"
)
#: Seconds to wait for the first worker: a batch system may queue it.
WAIT = 3600
# M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of glibc's malloc.h.
_MALLOC_OPTIONS, _MOST_KEPT = (-3, -1), 2**30
# What the values of features and units depend on.
_PACKAGES = ("espnet2-lamer", "numpy", "scikit-learn", "torch", "torchaudio")


@contextmanager
def workers(dask: str | None = None) -> Iterator[None]:
    """Run the joblib calls of the block on a Dask cluster, if one is named.

    Dask gives the task of a worker that dies to the next one. Workers that come later
    take part. Calls run in the present directory, wherever the workers were started.

    Args:
        dask: Address of the scheduler, such as ``tcp://host:8786``. Its workers have
            one thread each, this package, and the same files under the same paths.
            None or empty: processes of this machine, as many as a call asks for.

    Raises:
        RecipeError: Dask is not installed, the scheduler does not answer or goes away,
            a worker is not as described, or workers kept dying.
    """
    with _cluster(dask) if dask else _processes():
        yield


def keep_freed_memory() -> bool:
    """Let the C library keep what tensors free for those that come.

    glibc maps what is larger than some hundred kilobytes anew each time and gives it
    back when it is freed, and the kernel clears every page of it: 7,000 page faults in
    an update of the mini preset, a tenth of its time on a CPU. The process then holds
    the most that it ever needed, as a training does in every update anyway.

    Returns:
        Whether it is so; with other C libraries nothing is done.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(option, _MOST_KEPT) for option in _MALLOC_OPTIONS)


def check_processes(nj: int) -> None:
    """Raise RecipeError for 0 processes; joblib takes -1 for all cores."""
    if nj == 0:
        raise RecipeError("--nj 0: expected 1 or more processes, or -1 for all cores")


def run_each(
    function: Callable[..., Any], calls: Sequence[tuple], nj: int, description: str
) -> list[Any]:
    """Call a module's function with each tuple of arguments, and return the results.

    Worth it for calls that take seconds, such as training a head: models of that size
    gain little from a second thread, everything from a second process. What workers log
    goes where this process logs to.

    Args:
        function: Of a module, so that workers find it.
        calls: Its arguments. A single call runs in this process, with all its threads.
        nj: Number of processes, -1 for as many as there are cores.
        description: Label of the progress bar.

    Raises:
        RecipeError: ``nj`` is 0, or the first that a call raised.
    """
    from joblib import Parallel, delayed, effective_n_jobs
    from tqdm import tqdm

    check_processes(nj)
    # No more than there are calls: each process gets its share of the cores as threads.
    processes = min(effective_n_jobs(nj), len(calls))
    if processes < 2:
        return [function(*arguments) for arguments in calls]
    here = logging.getLogger().level, log_places(), s3prl_files_trusted()
    with workers():
        found = Parallel(n_jobs=processes, return_as="generator")(
            delayed(call_logged)(*here, function, arguments) for arguments in calls
        )
        return list(tqdm(found, desc=description, total=len(calls), disable=None))


def log_places() -> list[tuple]:
    """Log files and standard error, and how lines are written there."""
    return [
        (file, handler.level, handler.formatter, handler.filters)
        for handler in logging.getLogger().handlers
        if (file := getattr(handler, "baseFilename", None))
        or getattr(handler, "stream", None) is sys.stderr
    ]


def call_logged(
    level: int, places: list[tuple], trust: bool, function: Callable, arguments: tuple
) -> Any:
    """Call in a worker, whose messages go where those of its parent go."""
    root = logging.getLogger()
    old_level, old_handlers = root.level, root.handlers
    root.handlers = []
    root.setLevel(level)
    try:
        with redirect_stderr(_NoTerminal(sys.stderr)), trusting_s3prl_files(trust):
            for file, *look in places:
                handler = LogFile(file) if file else logging.StreamHandler()
                handler.level, handler.formatter, handler.filters = look
                root.addHandler(handler)
            return function(*arguments)
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers = old_handlers
        root.setLevel(old_level)


class _NoTerminal:
    """Standard error of a worker: bars of several would overwrite one another."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _processes() -> Iterator[None]:
    from joblib import parallel_config
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    try:
        with parallel_config(backend="loky", initializer=keep_loaded):
            yield
    except TerminatedWorkerError as error:
        raise RecipeError(WORKER_KILLED) from error


def keep_loaded() -> None:
    """Let a worker of joblib keep what it loaded.

    Where psutil is installed (Dask brings it), one that grew by 300 MB counts as
    leaking and is replaced, with a warning: here it has loaded a teacher, which its
    successor would load again in 10 s. There is no public switch.
    """
    from joblib.externals.loky import process_executor

    process_executor._USE_PSUTIL = False


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    client = _connect(address)
    from distributed import CancelledError, KilledWorker
    from joblib import parallel_config

    with client:
        _check(client, address)
        try:
            with parallel_config(backend=_backend(client)):
                yield
        except KilledWorker as error:
            raise RecipeError(
                f"--dask {address}: the same part of the work ended several workers "
                f"({error}); give them more memory and run the same command again, "
                "finished parts are kept"
            ) from error
        # Not one class: Dask's own is an Exception, asyncio's is not.
        except (CancelledError, asyncio.CancelledError) as error:
            raise RecipeError(
                f"--dask {address}: the scheduler gave the work up or is gone "
                f"({error}); run the same command again, finished parts are kept"
            ) from error


def _backend(client):
    """Return joblib's Dask backend, mended for long work on a changing cluster."""
    import cloudpickle
    from joblib._dask import DaskDistributedBackend

    directory = os.getcwd()

    class Cluster(DaskDistributedBackend):
        def effective_n_jobs(self, n_jobs):
            # For one worker joblib would compute here instead, and never ask again.
            return max(2, super().effective_n_jobs(n_jobs))

        def submit(self, func, callback=None):
            # As bytes: the scheduler unpickles arguments too, and a teacher's weights
            # would be loaded there.
            func.items = [
                (_call_in, (directory, cloudpickle.dumps(call)), {})
                for call in func.items
            ]
            future = super().submit(func, callback)
            if callback is not None:
                # joblib learns of an exception in the task, but would wait for ever
                # when Dask itself gives a task up.
                future.add_done_callback(
                    lambda done: done.exception() and callback(done.exception())
                )
            return future

    return Cluster(client=client)


def _call_in(directory: str, call: bytes) -> Any:
    """Make a pickled call in a directory: relative paths of the caller hold there."""
    # The next task may belong to a run in another directory.
    with ExitStack() as stack:
        try:
            stack.enter_context(chdir(directory))
        except OSError as error:
            raise RecipeError(
                f"{directory}: not found on {platform.node()} ({error.strerror}); "
                "the workers of a cluster need the same files under the same paths"
            ) from error
        function, args, kwargs = pickle.loads(call)
        return function(*args, **kwargs)


def _connect(address: str):
    require("distributed", f"--dask {address}, here and where the workers run,")
    from distributed import Client

    try:
        return Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"--dask {address}: no Dask scheduler answers there ({error}); expected "
            "an address such as tcp://host:8786, as `dask scheduler` prints it"
        ) from error


def _check(client, address: str) -> None:
    logging.info("--dask %s: waiting for workers", address)
    try:
        client.wait_for_workers(1, timeout=WAIT)
    except TimeoutError as error:
        raise RecipeError(
            f"--dask {address}: no worker came in {WAIT} s; start some with `dask "
            f"worker {address} --nthreads 1`"
        ) from error
    threads = client.nthreads()
    for worker, number in threads.items():
        # Threads of one process share torch's settings and the working directory.
        if number != 1:
            raise RecipeError(
                f"--dask {address}: worker {worker} has {number} threads, expected 1; "
                "start it with `--nthreads 1 --nworkers N`"
            )
    ours = _versions()
    try:
        found = client.run(_versions)
    except ImportError as error:
        raise RecipeError(
            f"--dask {address}: a worker cannot import this package ({error}); install "
            "it there as here"
        ) from error
    for worker, theirs in found.items():
        if theirs != ours:
            raise RecipeError(
                f"--dask {address}: worker {worker} has {theirs}, this machine has "
                f"{ours}; install the same versions, or results differ"
            )
    logging.info("--dask %s: %d workers", address, len(threads))


def _versions() -> dict[str, str | None]:
    found = {name: importlib.metadata.distributions(name=name) for name in _PACKAGES}
    return {name: next((d.version for d in ds), None) for name, ds in found.items()}
