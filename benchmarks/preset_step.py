"""Section ``step`` on a GPU, second part: a training config as it is."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.preset import micro_batch_seconds, read_preset
from benchmarks.report import Table, megabytes, verdict
from benchmarks.training import (
    GpuWork,
    Loading,
    Training,
    UpdateTimes,
    audio_seconds,
    build_factory,
    measure_loading,
    measure_updates,
    profile_update,
)
from espnet2_lamer.constants import SAMPLE_RATE

# An update of the paper preset has at most so much audio.
SECONDS = 225.0
# Milliseconds per 225 s of audio that a GPU of the H100's class should need.
MOST_MS = 60.0
FAST_GPUS = ("H100", "H200")
# Utterances of the corpus; lengths are the recipe's, 2 to 30 s.
UTTERANCES, SHORTEST, LONGEST = 320, 2.0, 30.0


@dataclass(frozen=True)
class Sizes:
    """How much is measured, and (for tests) a smaller network."""

    config: str
    units: int = 1000
    updates: int = 8
    warmup: int = 3
    layers: int = 0
    width: int = 0
    utterances: int = UTTERANCES
    shortest: float = SHORTEST
    longest: float = LONGEST


@dataclass(frozen=True)
class Measured:
    """One training: times of an update, its work, audio, operations and memory.

    ``audio`` and ``padded`` are seconds per update, without and with padding.
    """

    times: UpdateTimes
    work: GpuWork
    loading: Loading
    audio: float
    padded: float
    flops: int
    peak_bytes: int
    micro_batches: int
    rows: int
    precision: str


def measure(sizes: Sizes, device: str) -> Measured:
    """Train a config for some updates on noise; loading is measured on its own."""
    args = read_preset(
        sizes.config, sizes.units, sizes.layers, sizes.width, int(device == "cuda")
    )
    with tempfile.TemporaryDirectory() as name:
        factory = build_factory(
            args, Path(name), sizes.utterances, sizes.shortest, sizes.longest
        )
        if args.update_bins:
            seconds = micro_batch_seconds(args, 0.0)
            factory.device_bins = round(seconds * SAMPLE_RATE)
        batches = []
        for names, batch, ends in factory.iterate(1):
            batches.append((names, batch))
            if ends if args.update_bins else len(batches) == args.accum_grad:
                break
        loading = measure_loading(factory, 3 * len(batches))
    training = Training(args, device)

    def update() -> None:
        training.update(batches)

    torch.cuda.reset_peak_memory_stats()
    times = measure_updates(update, sizes.updates, sizes.warmup)
    peak = torch.cuda.max_memory_allocated()
    work = profile_update(update)
    with FlopCounterMode(display=False) as counter:
        update()
    return Measured(
        times=times,
        work=work,
        loading=loading,
        audio=audio_seconds(batches),
        padded=audio_seconds(batches, padded=True),
        flops=counter.get_total_flops(),
        peak_bytes=peak,
        micro_batches=len(batches),
        rows=sum(len(names) for names, _ in batches),
        precision=args.amp_dtype,
    )


def _rows(found: Measured, gpu: str, peak: float | None) -> list[list[str]]:
    seconds, audio = found.times.whole, found.audio
    scaled = 1e3 * seconds * SECONDS / found.padded
    fast = any(part in gpu for part in FAST_GPUS)
    rate = f"{found.flops / seconds / 1e12:.1f} TFLOP/s"
    if peak is not None and found.precision == "bf16":
        rate += f", {found.flops / seconds / peak:.1%} of {peak / 1e12:.0f}"
    needed = audio / seconds
    return [
        ["audio per update, s", f"{audio:.1f} ({found.padded:.1f} with padding)", ""],
        ["micro-batches, rows per update", f"{found.micro_batches}, {found.rows}", ""],
        ["ms per update", f"{1e3 * seconds:.1f}", ""],
        [
            f"ms per {SECONDS:g} s of audio, padding included",
            f"{scaled:.1f}",
            verdict(scaled, "<=", MOST_MS) if fast else f"none for {gpu}",
        ],
        ["host, ms per update", f"{1e3 * found.times.host:.1f}", ""],
        ["GPU stream, ms per update", f"{1e3 * found.times.stream:.1f}", ""],
        ["GPU at work, ms per update", f"{1e3 * found.work.busy:.1f}", ""],
        ["kernels per update", str(found.work.kernels), ""],
        ["copies and fills per update", str(found.work.copies), ""],
        ["waits of the host per update", str(found.work.waits), ""],
        ["TFLOP per update", f"{found.flops / 1e12:.2f}", ""],
        ["matrix rate", rate, ""],
        ["hours of audio per hour", f"{audio / seconds:.0f}", ""],
        ["peak GPU MB", megabytes(found.peak_bytes), ""],
        [
            "audio s per s: needed, loaded",
            f"{needed:.0f}, {found.loading.rate:.0f} ({found.loading.workers} workers)",
            verdict(found.loading.rate / needed, ">=", 1.0),
        ],
    ]


def report(
    sizes: Sizes, device: str, gpu: str, peak: float | None
) -> list[str | Table]:
    """Measure a config on the GPU called ``gpu``; ``peak`` is its rate in FLOP/s."""
    found = measure(sizes, device)
    table = Table(
        f"`{sizes.config}` as it is, {found.precision}", ["figure", "value", "target"]
    )
    table.rows += _rows(found, gpu, peak)
    explanation = (
        f"`{sizes.config}` on {gpu}: the training's own loader, collate function, "
        "model (random weights), optimizer, schedule and update, from batches on the "
        f"host; noise of {sizes.shortest:g} to {sizes.longest:g} s; medians of "
        f"{sizes.updates} updates after {sizes.warmup}. Host time is that of the "
        "calls, waits included; the stream's is from the first to the last kernel by "
        "CUDA's events; at work is when a kernel or a copy ran, by the profiler, which "
        "also counts kernels and waits, in an update of its own. Loading is measured "
        "without training."
    )
    return [explanation, table]
