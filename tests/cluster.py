"""Processes to kill: any function's, or those of a Dask cluster on this machine."""

import asyncio
import multiprocessing
import time

# Forked from a process that has imported this and run nothing: each starts at once.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "torchaudio.compliance.kaldi",
        "torchaudio.functional",
        "sklearn.cluster",
        "soundfile",
        "distributed",
        "espnet2_lamer.convert.load",
        "espnet2_lamer.units.kmeans",
        "espnet2_lamer.units.assign",
    ]
)


def spawn(function, *arguments):
    """Start ``function(*arguments)`` in a new process."""
    process = CONTEXT.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def _scheduler(connection, options):
    import dask
    from distributed import Scheduler

    async def serve():
        async with Scheduler(
            host="127.0.0.1", port=0, dashboard=False, dashboard_address=None
        ) as scheduler:
            connection.send(scheduler.address)
            await scheduler.finished()

    with dask.config.set(options):
        asyncio.run(serve())


def _worker(address, nthreads, prepare):
    from distributed import Worker

    if prepare is not None:
        prepare()

    async def serve():
        async with Worker(address, nthreads=nthreads, host="127.0.0.1") as worker:
            await worker.finished()

    asyncio.run(serve())


class Cluster:
    """A scheduler; workers are started and killed by hand.

    Args:
        options: Dask's configuration of the scheduler.
    """

    def __init__(self, options=None):
        here, there = CONTEXT.Pipe()
        self.scheduler = spawn(_scheduler, there, options or {})
        assert here.poll(120), "no scheduler"
        self.address = here.recv()
        self.workers = []

    def add_worker(self, nthreads=1, prepare=None):
        """Start a worker; ``prepare()`` runs in it first. Returns its process."""
        process = spawn(_worker, self.address, nthreads, prepare)
        self.workers.append(process)
        return process

    def wait_for(self, workers):
        """Wait until so many workers are there."""
        from distributed import Client

        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=120)

    def close(self):
        """Kill everything."""
        for process in [*self.workers, self.scheduler]:
            process.kill()
            process.join()


def wait_until(condition, seconds=120):
    """Poll until ``condition()`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
