"""joblib calls on a Dask cluster and in processes: where they run, what is said."""

import logging
import os
import platform
import signal
import subprocess
import sys
import time

import dask
import pytest
from joblib import Parallel, delayed

from espnet2_lamer import parallel
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.parallel import run_each, workers
from tests.cluster import Cluster


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster({"distributed.scheduler.allowed-failures": 0})
    yield cluster
    cluster.close()


@pytest.fixture
def one_worker(cluster):
    process = cluster.add_worker()
    yield process
    process.kill()
    process.join()


def run(function, *arguments, times=3):
    return Parallel(n_jobs=1)(delayed(function)(*arguments) for _ in range(times))


def fail(message):
    raise RecipeError(message)


def die(pid):
    assert os.getpid() != pid  # never the process that waits
    os.kill(os.getpid(), signal.SIGKILL)


def test_one_worker_is_enough_and_nothing_runs_here(cluster, one_worker):
    with workers(cluster.address):
        assert set(run(os.getpid)) == {one_worker.pid}


def test_calls_run_in_the_directory_of_the_caller(
    cluster, one_worker, tmp_path, monkeypatch
):
    before = os.getcwd()
    monkeypatch.chdir(tmp_path)
    with workers(cluster.address):
        assert set(run(os.getcwd)) == {str(tmp_path)}
    monkeypatch.chdir(before)
    with workers(cluster.address):
        assert set(run(os.getcwd)) == {before}


def test_a_worker_that_comes_later_takes_part(cluster, one_worker):
    def slow_pid():
        time.sleep(0.05)
        return os.getpid()

    with workers(cluster.address):
        calls = (delayed(slow_pid)() for _ in range(100))
        found = Parallel(n_jobs=1, return_as="generator", pre_dispatch="all")(calls)
        pids = {next(found)}
        other = cluster.add_worker()
        pids.update(found)
    other.kill()
    other.join()
    assert pids == {one_worker.pid, other.pid}


class Heavy:
    """What only the process that works with it may unpickle, such as a teacher."""

    def __init__(self, pid):
        self.pid = pid

    def __reduce__(self):
        return unpickle_heavy, (self.pid,)

    def __call__(self):
        return self.pid


def unpickle_heavy(pid):
    assert os.getpid() == pid
    return Heavy(pid)


def test_the_scheduler_unpickles_no_call(cluster, one_worker):
    with workers(cluster.address):
        assert set(run(Heavy(one_worker.pid))) == {one_worker.pid}


def test_an_error_of_a_call_comes_back_as_it_is(cluster, one_worker):
    with pytest.raises(RecipeError, match="no such utterance"):
        with workers(cluster.address):
            run(fail, "no such utterance")


def test_a_call_that_ends_its_worker_is_an_error_and_no_endless_wait(
    cluster, one_worker
):
    with pytest.raises(RecipeError, match="ended several workers .*more memory"):
        with workers(cluster.address):
            run(die, os.getpid(), times=1)
    one_worker.join(10)


def test_a_scheduler_that_goes_away_is_an_error_and_no_endless_wait():
    cluster = Cluster()
    cluster.add_worker()
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        try:
            with pytest.raises(RecipeError, match="gave the work up or is gone"):
                with workers(cluster.address):
                    calls = (delayed(time.sleep)(0.1) for _ in range(1000))
                    for _ in Parallel(return_as="generator")(calls):
                        cluster.scheduler.kill()
        finally:
            cluster.close()


def test_an_address_where_no_scheduler_is_is_refused():
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        for address in ("tcp://127.0.0.1:9", "nonsense://x"):
            with pytest.raises(RecipeError, match=f"--dask {address}: no Dask sched"):
                with workers(address):
                    raise AssertionError


def test_workers_with_several_threads_are_refused(cluster):
    process = cluster.add_worker(nthreads=2)
    with pytest.raises(RecipeError, match="has 2 threads, expected 1"):
        with workers(cluster.address):
            raise AssertionError
    process.kill()
    process.join()


def test_workers_with_other_versions_are_refused(cluster, one_worker, monkeypatch):
    # Here only: the worker has its own module.
    monkeypatch.setattr(parallel, "_PACKAGES", ("torch",))
    with pytest.raises(RecipeError, match="same versions, or results differ"):
        with workers(cluster.address):
            raise AssertionError


def test_a_cluster_without_workers_is_given_up(cluster, monkeypatch):
    monkeypatch.setattr(parallel, "WAIT", 0.2)
    with pytest.raises(RecipeError, match="no worker came in 0.2 s"):
        with workers(cluster.address):
            raise AssertionError


def test_without_dask_processes_of_this_machine_are_used():
    with workers(""):
        pids = Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(4))
    assert os.getpid() not in pids


def test_a_killed_process_of_this_machine_is_explained():
    with pytest.raises(RecipeError, match="worker process was killed.*lower --nj"):
        with workers():
            Parallel(n_jobs=2)(delayed(die)(os.getpid()) for _ in range(2))


_held = []


def _hold_more(megabytes: int) -> int:
    # Written to, so that it is resident; a new process every second would be noticed.
    _held.append(bytearray(b"x") * (megabytes * 2**20))
    time.sleep(0.6)
    return os.getpid()


@pytest.mark.slow
def test_processes_that_loaded_a_model_are_kept(recwarn):
    with workers():
        pids = Parallel(n_jobs=2)(delayed(_hold_more)(150) for _ in range(10))
    assert len(set(pids)) <= 2
    assert not [w for w in recwarn if "worker stopped" in str(w.message)]


def _report(number: int) -> tuple[int, int, bool]:
    logging.getLogger("espnet2_lamer.test").info("call %d", number)
    logging.debug("not wanted")
    time.sleep(0.3 / (1 + number))  # the last ones end first
    return number, os.getpid(), sys.stderr.isatty()


@pytest.fixture
def log_file(tmp_path):
    handler = logging.FileHandler(tmp_path / "stage.log")
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield tmp_path / "stage.log"
    root.removeHandler(handler)
    handler.close()
    root.setLevel(level)


@pytest.mark.parametrize("nj", [1, 2, 3])
def test_each_call_is_answered_in_order_and_logs_as_its_parent(nj, log_file):
    found = run_each(_report, [(n,) for n in range(5)], nj, "calls")
    assert [number for number, _, _ in found] == list(range(5))
    assert {pid == os.getpid() for _, pid, _ in found} == {nj == 1}
    assert not any(terminal for _, _, terminal in found)
    assert sorted(log_file.read_text().splitlines()) == [
        f"INFO espnet2_lamer.test: call {n}" for n in range(5)
    ]


def test_a_single_call_stays_in_this_process():
    assert run_each(os.getpid, [()], 4, "calls") == [os.getpid()]


def test_an_error_of_one_of_several_calls_comes_back_as_it_is():
    with pytest.raises(RecipeError, match="^exp/head: no text$"):
        run_each(fail, [("exp/head: no text",)] * 3, 2, "calls")
    with pytest.raises(RecipeError, match="--nj 0"):
        run_each(fail, [("never called",)] * 2, 0, "calls")


FAULTS = """
import resource, sys, torch
from espnet2_lamer.parallel import keep_freed_memory
kept = sys.argv[1] == "kept" and keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(10 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(kept, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_used_again_without_a_page_fault():
    found = {}
    for case in ("kept", "given back"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, case],
            capture_output=True,
            text=True,
            check=True,
        )
        said, number = done.stdout.split()[-2:]
        assert said == str(case == "kept")
        found[case] = int(number)
    # Ten tensors of 40 MiB, larger than what glibc keeps by itself: 100,000 pages of 4
    # KiB, 200 of 2 MiB.
    assert found["kept"] < 60 < 100 < found["given back"]
