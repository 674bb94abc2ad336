"""Calls that share GPUs: how many at a time, what runs again, and the same results.

The GPUs are pretended: their memory is a table of who holds how much.
"""

import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from espnet2_lamer import gpus
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.gpus import CudaMemory, run_on_gpus
from tests.pretended_gpu import pretended_gpu
from tests.without_gpu import Plain, report

GB = 10**9
ITSELF = 1 * GB


class Devices:
    """GPUs of ``total`` bytes, whose processes are threads here."""

    def __init__(self, total, count=1, processes=99):
        self.total, self.count, self.processes = total, count, processes
        self.lock, self.local = threading.Lock(), threading.local()
        self.held = {}  # (gpu, thread) -> bytes
        self.most = {}  # gpu -> calls at a time
        self.started = []

    # What CudaMemory does, per thread.
    def bind(self, gpu):
        key = gpu, threading.get_ident()
        with self.lock:
            here = [k for k in self.held if k[0] == gpu]
            if key not in self.held and len(here) >= self.processes:
                raise RuntimeError("CUDA-capable device(s) is/are busy")
            self.held.setdefault(key, ITSELF)
        self.local.key = key

    def free(self):
        gpu = self.local.key[0]
        return self.total - sum(b for (g, _), b in self.held.items() if g == gpu)

    def restart(self):
        self.local.peak = 0

    def peak(self):
        return self.local.peak

    def release(self):
        with self.lock:
            self.held[self.local.key] = ITSELF

    def take(self, size):
        gpu = self.local.key[0]
        with self.lock:
            if self.free() < size:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            self.held[self.local.key] += size
            busy = sum(b > ITSELF for (g, _), b in self.held.items() if g == gpu)
            self.most[gpu] = max(self.most.get(gpu, 0), busy)
        self.local.peak = size


@pytest.fixture
def devices(monkeypatch):
    """Make pretended GPUs whose workers are threads."""

    def make(total, **options):
        found = Devices(total, **options)

        class Worker:
            def __init__(self, gpu, threads, memory):
                found.started.append((gpu, threads))
                self.gpu, self.pool = gpu, ThreadPoolExecutor(1)

            def call(self, function, arguments):
                task = (found, self.gpu, function, arguments)
                return self.pool.submit(gpus._measured, *task)

            def free(self):
                return self.pool.submit(gpus._free, found, self.gpu).result()

            def close(self):
                self.pool.submit(self.leave).result()
                self.pool.shutdown()

            def leave(self):
                key = self.gpu, threading.get_ident()
                found.held.pop(key, None)

        monkeypatch.setattr(gpus, "_Worker", Worker)
        return found

    return make


def work(devices, number, size, seconds=0.05):
    devices.take(size)
    time.sleep(seconds)
    return number * number


def calls_of(devices, sizes):
    return [(devices, number, size) for number, size in enumerate(sizes)]


def test_as_many_run_at_a_time_as_the_first_ones_peak_allows(devices, caplog):
    caplog.set_level(logging.INFO)
    found = devices(24 * GB)
    calls = calls_of(found, [4 * GB] * 12)
    assert run_on_gpus(work, calls, 16, 1, "heads") == [n * n for n in range(12)]
    # Free beside the first worker are 23 GB; each takes 4 and 1 for its process.
    assert found.most == {0: int((0.9 * 23 + 1) // 5)} == {0: 4}
    assert "heads: 4 at a time on 1 GPU(s): one takes 4.0 GB, a process 1.0 GB" in (
        caplog.text
    )
    assert not found.held


def test_nj_bounds_how_many(devices):
    found = devices(80 * GB)
    run_on_gpus(work, calls_of(found, [GB] * 8), 3, 1, "heads")
    assert found.most == {0: 3}
    assert len(found.started) == 3


def test_what_does_not_fit_twice_runs_one_by_one(devices):
    found = devices(8 * GB)
    run_on_gpus(work, calls_of(found, [5 * GB] * 4), 4, 1, "heads")
    assert found.most == {0: 1}
    # A second process was there to see what it takes by itself.
    assert len(found.started) == 2


@pytest.mark.parametrize(("nj", "expected"), [(5, {0: 2, 1: 2, 2: 1}), (2, 1)])
def test_several_gpus_share_the_calls(devices, nj, expected):
    found = devices(80 * GB, count=3)
    calls = calls_of(found, [GB] * 20)
    assert run_on_gpus(work, calls, nj, 3, "heads") == [n * n for n in range(20)]
    # One on each, even if --nj is smaller.
    assert found.most == (expected if nj > 3 else dict.fromkeys(range(3), expected))


def test_calls_that_were_done_before_say_nothing_about_memory(devices):
    found = devices(10 * GB)
    run_on_gpus(work, calls_of(found, [0, 0, 4 * GB, 4 * GB, 4 * GB]), 4, 1, "heads")
    assert found.most == {0: 1}


def test_what_runs_out_of_memory_beside_others_runs_again_alone(devices, caplog):
    found = devices(20 * GB)
    calls = calls_of(found, [2 * GB, 3 * GB, 3 * GB, 18 * GB, 2 * GB, 2 * GB])
    names = [f"asr_{n}" for n in range(6)]
    attempts = []

    def noted(devices, number, size):
        attempts.append((number, len([b for b in found.held.values() if b > ITSELF])))
        return work(devices, number, size, 0.2)

    results = run_on_gpus(noted, calls, 4, 1, "heads", names)
    assert results == [n * n for n in range(6)]
    tried = [beside for number, beside in attempts if number == 3]
    assert len(tried) == 2 and tried[1] == 0
    assert "asr_3: ran out of GPU memory beside others (CUDA out of memory" in (
        caplog.text
    )
    assert [number for number, _ in attempts].count(2) == 1


def test_what_runs_out_of_memory_alone_is_named(devices):
    found = devices(20 * GB)
    names = ["asr_eng", "asr_cmn", "asr_yue"]
    for sizes, guilty in (([30, 1, 1], "asr_eng"), ([1, 1, 30], "asr_yue")):
        calls = calls_of(found, [n * GB for n in sizes])
        with pytest.raises(RecipeError, match=f"{guilty}: ran out .* lower the batch"):
            run_on_gpus(work, calls, 4, 1, "heads", names)
    assert not found.held


def test_messages_of_cudas_libraries_mean_full_memory_others_do_not(devices):
    found = devices(20 * GB)

    def broken(message, fails):
        found.take(GB)
        if fails.pop():
            raise RuntimeError(message)
        return "done"

    calls = [
        ("", [False]),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED", [False, True]),
        ("", [False]),
    ]
    assert run_on_gpus(broken, calls, 2, 1, "heads") == ["done"] * 3
    calls = [("", [False]), ("device-side assert", [True])]
    with pytest.raises(RuntimeError, match="device-side assert"):
        run_on_gpus(broken, calls, 2, 1, "heads")


def test_a_gpu_for_one_process_has_one(devices, caplog):
    found = devices(20 * GB, processes=1)
    calls = calls_of(found, [GB] * 3)
    assert run_on_gpus(work, calls, 4, 1, "heads") == [0, 1, 4]
    assert found.most == {0: 1}
    assert "takes no second process (CUDA-capable device" in caplog.text


def test_a_gpu_that_this_process_has_for_itself_is_used_from_here(devices, caplog):
    found = devices(20 * GB, processes=1)
    found.bind(0)
    assert run_on_gpus(work, calls_of(found, [GB] * 3), 4, 1, "heads") == [0, 1, 4]
    assert "no other process may use the GPU" in caplog.text


@pytest.mark.parametrize(("nj", "count"), [(1, 3), (4, 1)])
def test_one_at_a_time_stays_in_this_process(nj, count):
    assert run_on_gpus(os.getpid, [()] * count, nj, 1, "x") == [os.getpid()] * count


def test_no_gpu_is_as_before():
    assert run_on_gpus(os.getpid, [()], 2, 0, "heads") == [os.getpid()]
    with pytest.raises(RecipeError, match="--nj 0"):
        run_on_gpus(os.getpid, [()], 0, 1, "heads")


def test_torch_is_asked_for_memory(monkeypatch):
    memory = CudaMemory()
    with pretended_gpu():
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 * GB, 8 * GB))
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 2 * GB)
        memory.bind(0)
        assert memory.free() == 3 * GB
        ended = gpus._measured(memory, 0, int, ("7",))
        assert (ended.result, ended.peak, ended.free) == (7, 2 * GB, 3 * GB)
        with pytest.raises(RecipeError, match="found 1 GPUs .* expected 2 or more"):
            memory.bind(1)


def test_calls_run_in_processes_and_log_as_their_parent(tmp_path):
    handler = logging.FileHandler(tmp_path / "stage.log")
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        found = run_on_gpus(
            report, [(n,) for n in range(6)], 2, 1, "calls", memory=Plain()
        )
        for fault, match in (
            (-1, "^exp/head: no text$"),
            (99, "worker process was ki"),
        ):
            with pytest.raises(RecipeError, match=match):
                run_on_gpus(report, [(0,), (fault,)], 2, 1, "calls", memory=Plain())
    finally:
        root.removeHandler(handler)
        handler.close()
        root.setLevel(level)
    assert [number for number, _, _ in found] == list(range(6))
    pids = {pid for _, pid, _ in found}
    assert len(pids) == 2 and os.getpid() not in pids
    assert {threads for *_, threads in found} == {str(max(1, os.cpu_count() // 2))}
    lines = (tmp_path / "stage.log").read_text().splitlines()
    assert {f"call {n}" for n in range(6)} <= set(lines)
