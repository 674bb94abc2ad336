"""Measuring a training config on a GPU, with what only a GPU knows replaced."""

import re
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import preset_step, step, training
from benchmarks.preset import (
    micro_batch_seconds,
    micro_batches,
    read_preset,
    row_lengths,
)
from benchmarks.preset_step import Sizes, measure, report
from benchmarks.training import GpuWork, gpu_work, measure_updates
from espnet2_lamer.errors import RecipeError


class Clock:
    """Stands for CUDA: the host's time passes in calls, the GPU's at its own pace."""

    def __init__(self):
        self.host = self.gpu = 0.0

    def call(self, host, gpu):
        self.host += host
        self.gpu = max(self.gpu, self.host) + gpu

    def synchronize(self):
        self.host = max(self.host, self.gpu)

    def event(self, enable_timing):
        event = SimpleNamespace(at=None)
        event.record = lambda: setattr(event, "at", max(self.gpu, self.host))
        event.elapsed_time = lambda other: 1e3 * (other.at - event.at)
        return event


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(torch.cuda, "synchronize", clock.synchronize)
    monkeypatch.setattr(torch.cuda, "Event", clock.event)
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock.host)
    return clock


def test_host_and_gpu_times_are_told_apart(clock):
    calls = []

    def update():
        calls.append(None)
        # The first ones are slower, as kernels are chosen.
        slow = 10.0 if len(calls) <= 2 else 1.0
        for _ in range(4):
            clock.call(host=0.01 * slow, gpu=0.05 * slow)

    found = measure_updates(update, updates=5, warmup=2)
    assert len(calls) == 7
    assert found.host == pytest.approx(0.04)
    # The GPU begins when the first call has been made.
    assert found.whole == pytest.approx(0.01 + 4 * 0.05)
    assert found.stream == pytest.approx(0.01 + 4 * 0.05)


def test_a_host_that_is_slower_than_the_gpu_shows_in_all_three(clock):
    found = measure_updates(lambda: clock.call(0.3, 0.01), updates=3, warmup=0)
    assert found.host == pytest.approx(0.3)
    assert found.whole == pytest.approx(0.31) and found.stream == pytest.approx(0.31)


def event(name, start, end, kind="gpu"):
    return SimpleNamespace(name=name, kind=kind, start_ns=start, end_ns=end)


def test_the_gpus_work_is_the_union_of_its_kernels():
    events = [
        event("gemm", 0, 100),
        event("Memcpy HtoD", 50, 120),
        event("gelu", 200, 250),
        event("inside another", 210, 220),
        event("aten::mm", 0, 1000, "host"),
        event("cudaStreamSynchronize", 300, 400, "host"),
        event("cudaLaunchKernel", 300, 400, "host"),
    ]
    assert gpu_work(reversed(events)) == GpuWork(170e-9, 3, 1, 1)


@pytest.fixture
def no_gpu(monkeypatch):
    """Let a CPU be asked what only a GPU can answer."""

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            self.at = time.perf_counter()

        def elapsed_time(self, other):
            return 1e3 * (other.at - self.at)

    for name, value in {
        "synchronize": lambda: None,
        "Event": Event,
        "reset_peak_memory_stats": lambda: None,
        "max_memory_allocated": lambda: 5_000_000,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(
        preset_step, "profile_update", lambda run: (run(), GpuWork(0.5, 70, 3, 2))[1]
    )


TINY = Sizes(
    "conf/train_ssl_lamer.yaml",
    units=5,
    updates=2,
    warmup=1,
    layers=4,
    width=32,
    utterances=12,
    shortest=3.0,
    longest=3.9,
)


def numbers(text):
    return [float(x) for x in re.findall(r"\d+\.?\d*", text)]


@pytest.fixture
def small_batches(monkeypatch):
    """The paper preset with micro-batches of 4 s, as a GPU would run it."""

    def read(*args, **options):
        found = read_preset(*args, **options)
        found.update_bins, found.device_bins, found.num_workers = 256000, 64000, 0
        found.amp_dtype = "none"
        return found

    monkeypatch.setattr(preset_step, "read_preset", read)


def test_a_config_is_trained_as_it_is(no_gpu, small_batches):
    found = measure(TINY, "cpu")
    # Four micro-batches of one utterance each.
    assert (found.micro_batches, found.rows) == (4, 4)
    assert 4 * 3.0 <= found.audio <= found.padded <= 4 * 4.0
    assert found.flops > 0 and found.peak_bytes == 5_000_000
    assert found.loading.workers == 0 and found.loading.rate > 0
    assert 0 < found.times.host <= found.times.whole


def test_the_table_has_what_follows_from_the_measurements(monkeypatch):
    measured = preset_step.Measured(
        times=training.UpdateTimes(0.05, 0.02, 0.048),
        work=GpuWork(0.04, 3000, 5, 1),
        loading=training.Loading(9000.0, 4),
        audio=210.0,
        padded=220.0,
        flops=int(20e12),
        peak_bytes=int(8e9),
        micro_batches=1,
        rows=15,
        precision="bf16",
    )
    monkeypatch.setattr(preset_step, "measure", lambda *_: measured)
    _, table = report(TINY, "cuda", "NVIDIA H100", step.peak_flops("NVIDIA H100"))
    rows = {name: (value, target) for name, value, target in table.rows}
    value, target = rows["ms per 225 s of audio, padding included"]
    assert float(value) == pytest.approx(50 * 225 / 220, abs=0.1)
    assert target == "<= 60: met"
    assert numbers(rows["hours of audio per hour"][0]) == [4200]
    # 20 TFLOP in 50 ms are 400 TFLOP/s, 40.4 % of 989.
    assert numbers(rows["matrix rate"][0]) == [400, 40.4, 989]
    assert rows["audio s per s: needed, loaded"] == (
        "4200, 9000 (4 workers)",
        ">= 1: met",
    )
    _, table = report(TINY, "cuda", "NVIDIA L4", step.peak_flops("NVIDIA L4"))
    rows = {name: (value, target) for name, value, target in table.rows}
    assert rows["matrix rate"][0] == "400.0 TFLOP/s"
    assert "none for NVIDIA L4" in rows["ms per 225 s of audio, padding included"]


def test_a_config_runs_on_a_gpu_only_and_may_be_left_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    asked = []
    monkeypatch.setattr(step, "report", lambda *args: asked.append(args) or ["done"])
    options = step.Options(updates=2, units=7)
    assert step.of_config(options, "cpu") == []
    assert step.of_config(step.Options(config="none"), "cuda") == []
    assert step.of_config(options, "cuda") == ["done"]
    sizes = Sizes("conf/train_ssl_lamer.yaml", 7, 2)
    assert asked == [(sizes, "cuda", "NVIDIA H200", 989e12)]


def test_rows_fill_a_micro_batch_and_leave_padding():
    for seconds in (0.5, 4.0, 56.25, 225.0):
        rows = row_lengths(seconds, 250000)
        assert max(rows) <= 250000
        assert max(rows) * len(rows) <= seconds * 16000 < (max(rows) + 1) * len(rows)
        assert len(rows) < 4 or min(rows) < max(rows)


def test_a_preset_is_read_as_training_reads_it():
    args = read_preset("conf/train_ssl_lamer.yaml", 10)
    assert (args.amp_dtype, args.accum_grad, args.ngpu) == ("bf16", 1, 1)
    assert micro_batch_seconds(args, 0.0) == 225.0
    assert [micro_batches(args, seconds) for seconds in (225.0, 56.25)] == [1, 4]
    assert micro_batch_seconds(args, 4.0) == 4.0
    assert "encoder_num_layers" not in args.encoder_conf
    with pytest.raises(RecipeError, match=r"gone\.yaml: file not found"):
        read_preset("conf/gone.yaml", 10)
