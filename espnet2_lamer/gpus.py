"""Calls that share GPUs: side by side on each of them, as many as its memory takes.

Small networks leave most of a GPU idle. Every call here is a process of its own, which
gives the results of one call after the other: nothing is shared but the device.
"""

import gc
import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from espnet2_lamer.errors import RecipeError, short_reason
from espnet2_lamer.fileio.system import size
from espnet2_lamer.fileio.trust import s3prl_files_trusted
from espnet2_lamer.parallel import (
    WORKER_KILLED,
    call_logged,
    check_processes,
    keep_loaded,
    log_places,
    run_each,
)

#: Share of the free memory that calls are given: they do not all take the same.
HEADROOM = 0.9
# What CUDA and its libraries say when there is no memory; torch's own class has it too.
_FULL = ("out of memory", "ALLOC_FAILED")


class CudaMemory:
    """What a process asks torch of its GPU."""

    def bind(self, gpu: int) -> None:
        """Let ``"cuda"`` be this GPU; RecipeError where there are not so many."""
        import torch

        count = torch.cuda.device_count()
        if gpu >= count:
            raise RecipeError(
                f"--ngpu: found {count} GPUs on this machine, expected {gpu + 1} or "
                "more; lower it (0 computes on the CPU), or look at "
                "CUDA_VISIBLE_DEVICES"
            )
        torch.cuda.set_device(gpu)

    def free(self) -> int:
        """Return the bytes that are free on the device, whoever took the others."""
        import torch

        return torch.cuda.mem_get_info()[0]

    def restart(self) -> None:
        """Begin to look for a peak."""
        import torch

        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """Return the most bytes that this process held for tensors since then."""
        import torch

        return torch.cuda.max_memory_reserved()

    def release(self) -> None:
        """Give back what no tensor needs any more."""
        import torch

        gc.collect()
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class _Outcome:
    """What a call gave, the bytes it took, and those that are free afterwards.

    ``full`` is the message where it ran out of memory.
    """

    result: Any
    peak: int
    free: int
    full: str | None = None


def run_on_gpus(
    function: Callable[..., Any],
    calls: Sequence[tuple],
    nj: int,
    ngpu: int,
    description: str,
    names: Sequence[str] | None = None,
    memory: CudaMemory | None = None,
) -> list[Any]:
    """Call a module's function with each tuple of arguments; return the results.

    Without GPUs as :func:`~espnet2_lamer.parallel.run_each`. With them the first call
    runs alone; its peak and what is free afterwards decide how many run at a time on
    each GPU, ``nj`` at most on all, but one on each. A call that runs out of memory
    beside others runs again alone, and its GPU takes one less from then on.

    Args:
        function: Of a module; it computes on ``"cuda"``, which is one GPU to it, and
            may be called again after it ran out of memory.
        calls: Its arguments.
        nj: Number of processes, -1 for as many as there are cores.
        ngpu: Number of GPUs.
        description: Label of the progress bar and of messages.
        names: What messages call the calls.
        memory: How a process asks for memory.

    Raises:
        RecipeError: ``nj`` is 0, there are fewer GPUs, a call runs out of memory alone,
            a process was killed, or the first that a call raised.
    """
    check_processes(nj)
    if not ngpu or not calls:
        return run_each(function, calls, nj, description)
    nj = os.cpu_count() or 1 if nj < 0 else nj
    if ngpu == 1 and (nj == 1 or len(calls) == 1):
        return run_each(function, calls, 1, description)
    total = len(calls)
    names = names or [f"{description}, {i + 1} of {total}" for i in range(total)]
    ngpu, limit = min(ngpu, total), min(max(nj, ngpu), total)
    team = _Team(function, calls, names, description, limit, memory or CudaMemory())
    try:
        return team.run(ngpu)
    finally:
        team.close()


class _Worker:
    """A process that works on one GPU, one call after the other."""

    def __init__(self, gpu: int, threads: int, memory: CudaMemory) -> None:
        from joblib.externals.loky import ProcessPoolExecutor

        self.gpu, self._memory = gpu, memory
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self._pool = ProcessPoolExecutor(
            1, initializer=keep_loaded, env=dict.fromkeys(names, str(threads))
        )

    def call(self, function: Callable, arguments: tuple) -> Future:
        here = logging.getLogger().level, log_places(), s3prl_files_trusted()
        task = (self._memory, self.gpu, function, arguments)
        return self._pool.submit(call_logged, *here, _measured, task)

    def free(self) -> int:
        """Start the process, and return the bytes that are free beside it."""
        return self._pool.submit(_free, self._memory, self.gpu).result()

    def close(self) -> None:
        self._pool.shutdown(kill_workers=True)


def _free(memory: CudaMemory, gpu: int) -> int:
    memory.bind(gpu)
    return memory.free()


def _measured(
    memory: CudaMemory, gpu: int, function: Callable, arguments: tuple
) -> _Outcome:
    """Call in a worker, and look at its memory."""
    memory.bind(gpu)
    memory.free()  # the device is there from here on
    memory.restart()
    result, full = None, None
    try:
        result = function(*arguments)
    except RuntimeError as error:
        if not any(word in str(error) for word in _FULL):
            raise
        # Not the error: its traceback holds the tensors.
        full = short_reason(error)
    peak = memory.peak()
    memory.release()
    return _Outcome(result, peak, memory.free(), full)


class _Team:
    """The workers, the calls that wait, and what came back."""

    def __init__(
        self,
        function: Callable[..., Any],
        calls: Sequence[tuple],
        names: Sequence[str],
        description: str,
        limit: int,
        memory: CudaMemory,
    ) -> None:
        from tqdm import tqdm

        self.function, self.calls, self.names = function, calls, names
        self.description, self.limit, self.memory = description, limit, memory
        self.waiting = deque(range(len(calls)))
        self.alone: list[int] = []
        self.results: dict[int, Any] = {}
        self.workers: list[_Worker] = []
        self.bar = tqdm(desc=description, total=len(calls), disable=None)

    def run(self, ngpu: int) -> list[Any]:
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        try:
            first = self._start(0)
            try:
                first.free()
            except TerminatedWorkerError:
                raise
            except RuntimeError as error:
                return self._run_here(error)
            # What was done already says nothing about memory.
            need = free = 0
            while self.waiting and not need:
                outcome = self._call_alone(first, self.waiting.popleft())
                need, free = outcome.peak, outcome.free
            if self.waiting:
                self._hire(ngpu, need, free)
                self._work()
            if self.alone:
                self._work_alone()
        except TerminatedWorkerError as error:
            raise RecipeError(WORKER_KILLED) from error
        return [self.results[number] for number in range(len(self.calls))]

    def close(self) -> None:
        self.bar.close()
        while self.workers:
            self.workers.pop().close()

    def _run_here(self, error: RuntimeError) -> list[Any]:
        """A GPU that is set to belong to one process may belong to this one."""
        logging.warning(
            "%s: no other process may use the GPU (%s): one call after the other in "
            "this one",
            self.description,
            short_reason(error),
        )
        return run_each(self.function, self.calls, 1, self.description)

    def _start(self, gpu: int) -> _Worker:
        threads = max(1, (os.cpu_count() or 1) // self.limit)
        self.workers.append(_Worker(gpu, threads, self.memory))
        return self.workers[-1]

    def _leave(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        worker.close()

    def _hire(self, ngpu: int, need: int, free: int) -> None:
        """Start workers, as many as ``limit`` and memory allow, spread over GPUs.

        ``free`` is what the first worker left on its GPU. A process takes memory by
        itself, before any call: what a second one takes away.
        """
        room = [free, *(self._start(gpu).free() for gpu in range(1, ngpu))]
        fit, itself = [1] * ngpu, 0
        if self.limit > ngpu and (itself := self._cost_of_second(free)) is not None:
            fit = [
                int((HEADROOM * space + itself) // (need + itself)) for space in room
            ]
        places = [
            gpu
            for level in range(max(1, *fit))
            for gpu in range(ngpu)
            if level < max(1, fit[gpu])
        ][: self.limit]
        for gpu in range(ngpu):
            here = [worker for worker in self.workers if worker.gpu == gpu]
            for worker in here[places.count(gpu) :]:
                self._leave(worker)
            for _ in range(places.count(gpu) - len(here)):
                self._start(gpu)
        logging.info(
            "%s: %d at a time on %d GPU(s): one takes %s, a process %s more, free are "
            "%s; --nj allows %d",
            self.description,
            len(self.workers),
            ngpu,
            size(need),
            size(itself or 0),
            ", ".join(map(size, room)),
            self.limit,
        )

    def _cost_of_second(self, free: int) -> int | None:
        """Start a second worker on the first GPU; None if it takes none."""
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        second = self._start(0)
        try:
            return max(0, free - second.free())
        except TerminatedWorkerError:
            raise
        except RuntimeError as error:
            # A GPU may be set to belong to one process.
            logging.warning(
                "%s: the GPU takes no second process (%s): one at a time",
                self.description,
                short_reason(error),
            )
            self._leave(second)
            return None

    def _call_alone(self, worker: _Worker, number: int) -> _Outcome:
        outcome = worker.call(self.function, self.calls[number]).result()
        self._note(number, outcome)
        return outcome

    def _note(self, number: int, outcome: _Outcome) -> None:
        if outcome.full is not None:
            raise RecipeError(
                f"{self.names[number]}: ran out of GPU memory with nothing of this "
                f"run beside it ({outcome.full}); lower the batch in its config, or "
                "let nothing else run on that GPU"
            )
        self.results[number] = outcome.result
        self.bar.update()

    def _work(self) -> None:
        """Let every worker take the next call until none waits."""
        running: dict[Future, tuple[_Worker, int]] = {}
        idle = deque(self.workers)
        while self.waiting or running:
            while self.waiting and idle:
                worker, number = idle.popleft(), self.waiting.popleft()
                future = worker.call(self.function, self.calls[number])
                running[future] = worker, number
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                worker, number = running.pop(future)
                outcome = future.result()
                if outcome.full is None:
                    self._note(number, outcome)
                    idle.append(worker)
                    continue
                logging.warning(
                    "%s: ran out of GPU memory beside others (%s); it runs again alone "
                    "when they are done",
                    self.names[number],
                    outcome.full,
                )
                self.alone.append(number)
                same = [other for other in self.workers if other.gpu == worker.gpu]
                if len(same) > 1:
                    self._leave(worker)
                else:
                    idle.append(worker)

    def _work_alone(self) -> None:
        """Run again what ran out of memory, with no other process on its GPU."""
        for worker in self.workers[1:]:
            self._leave(worker)
        for number in self.alone:
            logging.info("%s: runs again alone", self.names[number])
            self._call_alone(self.workers[0], number)
