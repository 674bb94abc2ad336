"""A training of a config as it is, on noise: its loader, its updates, and their times.

What only a GPU can be asked goes through :mod:`torch.cuda` and :mod:`torch.profiler`;
tests replace these.
"""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.preset import prepare
from benchmarks.stock_setup import Options as CorpusOptions
from benchmarks.stock_setup import write_corpus
from espnet2_lamer.constants import SAMPLE_RATE

Batch = tuple[list[str], dict[str, Tensor]]


def build_factory(
    args: Any, folder: Path, utterances: int, shortest: float, longest: float
) -> Any:
    """Write a corpus of noise, and build the training's own iterator factory over it.

    Args:
        args: Of :func:`benchmarks.preset.read_preset`; its data paths are set.
        folder: Where the corpus goes.
        utterances: Their number.
        shortest: Seconds of the shortest one; lengths are spread evenly.
        longest: Seconds of the longest one.
    """
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    corpus = write_corpus(
        folder,
        CorpusOptions(
            utterances=utterances,
            shortest=shortest,
            longest=longest,
            units=args.num_classes,
        ),
    )
    for part in ("train", "valid"):
        files = corpus.directory / part
        data = [(str(files / "wav.scp"), "speech", "sound")]
        data.append((str(files / "text"), "text", "text"))
        setattr(args, f"{part}_data_path_and_name_and_type", data)
        setattr(args, f"{part}_shape_file", [str(files / "shape")])
    alone = SimpleNamespace(distributed=False)
    options = LamerHubertTask.build_iter_options(args, alone, "train")
    return LamerHubertTask.build_task_iter_factory(args, options, "train")


def audio_seconds(batches: Iterable[Batch], padded: bool = False) -> float:
    """Seconds of audio in batches, without padding unless it is asked for."""
    total = 0
    for _, batch in batches:
        speech = batch["speech"]
        total += speech.numel() if padded else int(batch["speech_lengths"].sum())
    return total / SAMPLE_RATE


@dataclass(frozen=True)
class Loading:
    """What the loader delivers: seconds of audio per second, and its processes."""

    rate: float
    workers: int


def measure_loading(factory: Any, batches: int) -> Loading:
    """Load batches as training does and do nothing with them.

    The time before the first batch, in which processes start, is left out.
    """
    audio, started = 0.0, 0.0
    for number, batch in enumerate(factory.build_iter(1)):
        if number == 0:
            started = time.perf_counter()
            continue
        audio += audio_seconds([batch])
        if number >= batches:
            break
    if not audio:
        raise ValueError(f"found 1 batch in an epoch, expected more, up to {batches}")
    return Loading(audio / (time.perf_counter() - started), factory.num_workers)


class Training:
    """Model, optimizer, schedule and updates of a config.

    Args:
        args: Of :func:`benchmarks.preset.read_preset`.
        device: ``cuda``; tests have none.
    """

    def __init__(self, args: Any, device: str) -> None:
        from espnet2.tasks.abs_task import scheduler_classes

        from espnet2_lamer.tasks.hubert import LamerHubertTask
        from espnet2_lamer.train.update import Updater

        torch.manual_seed(args.seed)
        self.device = device
        self.model = LamerHubertTask.build_model(args).to(device).train()
        prepare([self.model])
        (optimizer,) = LamerHubertTask.build_optimizers(args, self.model)
        scheduler = None
        if args.scheduler is not None:
            scheduler = scheduler_classes[args.scheduler](
                optimizer, **args.scheduler_conf
            )
        self.updater = Updater(self.model, optimizer, scheduler, None, args)
        self.updates = 0

    def update(self, batches: list[Batch]) -> None:
        """Make one update of several micro-batches, which lie on the host."""
        from espnet2.torch_utils.device_funcs import to_device
        from espnet2.train.reporter import SubReporter

        from espnet2_lamer.train.figures import Figures

        figures = Figures(SubReporter("train", 1, 0))
        for number, (names, batch) in enumerate(batches):
            last = number == len(batches) - 1
            there = to_device(batch, self.device)
            self.updater.add(names, there, figures, last)
        self.updater.step(figures)
        figures.next()
        self.updates += 1


@dataclass(frozen=True)
class UpdateTimes:
    """Medians over updates, in seconds.

    ``whole`` is from the first call to the last kernel's end. ``host`` is how long the
    calls took, waits for the GPU included; ``stream`` the time between the first and
    the last kernel by CUDA's events.
    """

    whole: float
    host: float
    stream: float


def measure_updates(run: Callable[[], Any], updates: int, warmup: int) -> UpdateTimes:
    """Time updates on the GPU, host and GPU apart.

    Args:
        run: Makes one update; it is called after the GPU has become idle.
        updates: Timed ones.
        warmup: Ones before them, in which kernels are chosen and memory is taken.
    """
    found: list[tuple[float, float, float]] = []
    for number in range(warmup + updates):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        started = time.perf_counter()
        begin.record()
        run()
        end.record()
        host = time.perf_counter() - started
        torch.cuda.synchronize()
        whole = time.perf_counter() - started
        if number >= warmup:
            found.append((whole, host, begin.elapsed_time(end) / 1e3))
    return UpdateTimes(
        *(statistics.median(values) for values in zip(*found, strict=True))
    )


@dataclass(frozen=True)
class GpuWork:
    """What the GPU did in one update, by its own record.

    ``busy`` are seconds in which at least one kernel or copy ran; ``kernels`` and
    ``copies`` are counted; ``waits`` are calls in which the host waited for the GPU.
    """

    busy: float
    kernels: int
    copies: int
    waits: int


def gpu_work(events: Iterable[Any]) -> GpuWork:
    """Sum the profiler's events up (``start_ns``, ``end_ns``, ``kind``, ``name``)."""
    spans, kernels, copies, waits = [], 0, 0, 0
    for event in events:
        if event.kind == "gpu":
            copy = event.name.startswith(("Memcpy", "Memset"))
            kernels, copies = kernels + (not copy), copies + copy
            spans.append((event.start_ns, event.end_ns))
        elif event.name in ("cudaStreamSynchronize", "cudaDeviceSynchronize"):
            waits += 1
    busy, reached = 0, 0
    for start, end in sorted(spans):
        busy += max(0, end - max(start, reached))
        reached = max(reached, end)
    return GpuWork(busy / 1e9, kernels, copies, waits)


def profile_update(run: Callable[[], Any]) -> GpuWork:
    """Profile one update; the wait at its end, which is ours, is not counted."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    events = []
    for event in profiler.profiler.kineto_results.events():
        on_gpu = event.device_type() == torch.autograd.DeviceType.CUDA
        start = event.start_ns()
        events.append(
            SimpleNamespace(
                name=event.name(),
                kind="gpu" if on_gpu else "host",
                start_ns=start,
                end_ns=start + event.duration_ns(),
            )
        )
    found = gpu_work(events)
    return GpuWork(found.busy, found.kernels, found.copies, max(0, found.waits - 1))
