"""Section ``overhead``: what step checkpoints and statistics add to an update."""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import Reporter
from torch import nn

from benchmarks import step
from benchmarks.harness import Case, interleave, synchronizer
from benchmarks.options import option
from benchmarks.report import Table, megabytes, verdict
from espnet2_lamer.layers import LamerConfig

TITLE = "step checkpoints and statistics, per update of HuBERT-Large"
DEVICES = ("cpu", "cuda")
LIMIT = 2.0


@dataclasses.dataclass(frozen=True)
class Options(step.Options):
    """Sizes of section ``step``, and the intervals of training."""

    checkpoint_interval: int = option(500, "updates between checkpoints (the default)")
    log_interval: int = option(200, "batches between log lines (train_ssl_lamer.yaml)")
    epoch_batches: int = option(8000, "batches of an epoch (train_ssl_lamer.yaml)")
    saves: int = option(5, "checkpoints that are timed")


QUICK = Options(
    **dataclasses.asdict(step.QUICK),
    checkpoint_interval=5,
    log_interval=4,
    epoch_batches=8,
    saves=2,
)


class Nothing:
    """Stands in for statistics that are not kept."""

    due = False

    def add(self, *args: Any) -> None:
        """Do nothing."""


class Clock:
    """Adds up the seconds of functions, by name.

    Args:
        synchronize: Waits for the device; what it still has to do belongs to others.
    """

    def __init__(self, synchronize: Callable[[], Any]) -> None:
        self.synchronize = synchronize
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the block's time."""
        self.synchronize()
        started = time.perf_counter()
        yield
        self.synchronize()
        self.seconds[name] += time.perf_counter() - started

    @contextmanager
    def watching(self, name: str, owner: Any, *attributes: str) -> Iterator[None]:
        """Add the time of every call of ``owner.attribute`` in the block."""
        with ExitStack() as stack:
            for attribute in attributes:
                timed = self._timed(name, getattr(owner, attribute))
                stack.enter_context(mock.patch.object(owner, attribute, timed))
            yield

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.measure(name):
                return function(*args, **kwargs)

        return timed


def build_model(options: Options, device: str) -> nn.Module:
    """Build Lamer 2/4/6/8 whose checkpoints leave the backbone out, as in training."""
    from espnet2_lamer.asr.encoder.lamer_hubert import BASE_HASH, GUARD

    lamer = LamerConfig(allocation="2,4,6,8", rank=options.rank)
    model = step.with_experts(step.build_backbone(options), lamer)
    backbone = model.encoder.wav2vec2
    trained = {id(p) for p in backbone.parameters() if p.requires_grad}
    state = backbone.state_dict(keep_vars=True).values()
    base = [tensor for tensor in state if id(tensor) not in trained]
    sha256 = "00" * 32
    model.encoder.set_base(
        "encoder_conf.base", sha256, base, GUARD, BASE_HASH, torch.uint8
    )
    return model.to(device)


class Training:
    """Updates as :class:`~espnet2_lamer.train.run.TrainingRun` makes them.

    Args:
        model: An ESPnet model.
        batch: Of one language each half of its utterances.
        options: Sizes.
        device: ``"cpu"`` or ``"cuda"``.
        directory: Gets checkpoints.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: dict[str, torch.Tensor],
        options: Options,
        device: str,
        directory: Path,
    ) -> None:
        from espnet2_lamer.train.figures import Figures
        from espnet2_lamer.train.run import TrainingRun
        from espnet2_lamer.train.update import Updater

        self.model = model
        self.bare = step.Step(model, batch)
        languages = torch.arange(options.batch, device=device) % 2
        self.batch = batch | {"lang": languages}
        settings = argparse.Namespace(
            **{"accum_grad": 1, "grad_clip": 1.0, "grad_clip_type": 2.0},
            **{"max_bad_updates": 1, "grad_norm_groups": False, "use_amp": False},
            **{"output_dir": str(directory), "fingerprint": {}},
            **{"ngpu": int(device == "cuda"), "log_interval": options.log_interval},
        )
        optimizer = self.bare.optimizer
        self.run = TrainingRun(
            *(model, optimizer, None, None, None, settings, DistributedOption())
        )
        self.updater = Updater(model, optimizer, None, None, settings)
        self.interval = options.log_interval
        self.names = [f"utterance{number}" for number in range(options.batch)]
        self.reporter = Reporter().start_epoch("train", 1)
        self.figures = Figures(self.reporter)
        # A model keeps statistics of its own; the bare step has none.
        self.kept = model.routing_statistics, model.language_statistics
        for statistics_ in self.kept:
            statistics_.interval = options.log_interval
        model.language_statistics.names = ["one", "other"]

    def bare_step(self) -> None:
        """Make an update and keep no figure of it."""
        nothing = Nothing()
        self.model.routing_statistics = self.model.language_statistics = nothing
        self.bare()

    def update(self) -> None:
        """Make an update and report it."""
        self.model.routing_statistics, self.model.language_statistics = self.kept
        self.updater.add(self.names, self.batch, self.figures, last=True)
        self.updater.step(self.figures)
        self.figures.register({"train_time": 0.0, "iter_time": 0.0})
        self.figures.next()
        if self.figures.count % self.interval == 0:
            self.read()

    def read(self) -> None:
        """Let the reporter have what was collected, as at a log line."""
        self.updater.settle()
        self.figures.flush()

    def fill(self, batches: int) -> None:
        """Let the reporter hold as many batches as in the middle of an epoch."""
        factor = -(-batches // self.reporter.count)
        for key, values in self.reporter.stats.items():
            self.reporter.stats[key] = values * factor
        self.reporter.count *= factor


def measure_parts(
    training: Training, options: Options, clock: Clock
) -> dict[str, float]:
    """Seconds that each part costs per update."""
    from espnet2_lamer.train import update
    from espnet2_lamer.train.figures import Figures
    from espnet2_lamer.train.update import Updater

    routing, language = training.kept
    with ExitStack() as stack:
        for name, owner, *attributes in (
            ("routing statistics", routing, "add"),
            ("figures per language", language, "add"),
            ("figures to ESPnet's reporter", update, "figure_sums"),
            ("figures to ESPnet's reporter", Updater, "_exchange", "settle"),
            ("figures to ESPnet's reporter", Figures, "flush"),
        ):
            stack.enter_context(clock.watching(name, owner, *attributes))
        for _ in range(options.rounds):
            training.update()
    parts = {name: s / options.rounds for name, s in clock.seconds.items()}
    reads = Clock(clock.synchronize)
    for _ in range(options.rounds):
        training.update()
        with reads.measure("routing statistics"):
            routing.read()
        with reads.measure("figures per language"):
            language.read()
    training.read()
    training.fill(options.epoch_batches // 2)
    for _ in range(options.rounds):
        with reads.measure("figures to ESPnet's reporter"):
            training.reporter.log_message(-options.log_interval)
    for name, seconds in reads.seconds.items():
        parts[name] += seconds / options.rounds / options.log_interval
    return parts


def measure_saving(
    training: Training, options: Options, clock: Clock
) -> tuple[float, int]:
    """Median seconds of a checkpoint in the middle of an epoch, and its bytes."""
    times = []
    for number in range(options.saves):
        training.run.updates = number
        before = clock.seconds["save"]
        with clock.measure("save"):
            training.run._save(training.reporter)
        times.append(clock.seconds["save"] - before)
    size = training.run.store.paths()[0].stat().st_size
    return statistics.median(times), size


def run(options: Options, device: str) -> list[str | Table]:
    """Measure every part, and the whole; returns text and a table."""
    on_gpu = device == "cuda"
    options = dataclasses.replace(
        options,
        batch=options.batch or (16 if on_gpu else 2),
        seconds=options.seconds or (15.625 if on_gpu else 5.0),
    )
    synchronize = synchronizer(device)
    with tempfile.TemporaryDirectory() as name:
        training = Training(
            build_model(options, device),
            step.synthetic_batch(options, device),
            options,
            device,
            Path(name),
        )
        timings = interleave(
            {"bare": Case(training.bare_step), "ours": Case(training.update)},
            options.rounds,
            synchronize=synchronize,
            description=f"overhead {device}",
        )
        parts = measure_parts(training, options, Clock(synchronize))
        saving, size = measure_saving(training, options, Clock(synchronize))
    parts["step checkpoint"] = saving / options.checkpoint_interval
    bare = timings.median("bare")
    table = Table(
        f"{options.batch} x {options.seconds:g} s, {options.dtype}: "
        f"{bare:.3f} s per update without any of it",
        ["part", "ms per update", "% of an update", "target"],
    )
    for name, seconds in parts.items():
        row = [name, f"{seconds * 1e3:.2f}", f"{seconds / bare:.3%}".rstrip("%"), ""]
        table.rows.append(row)
    whole = sum(parts.values())
    table.rows.append(
        [
            "all",
            f"{whole * 1e3:.2f}",
            f"{whole / bare:.3%}".rstrip("%"),
            verdict(100 * whole / bare, "<=", LIMIT),
        ]
    )
    explanation = (
        f"Lamer 2/4/6/8 on HuBERT-Large's shape ({options.layers} layers, random "
        "weights), one batch per update: with more (`accum_grad`) checkpoints cost "
        "less. Each part is timed by itself, the device idle before it, and set "
        "against the median update without any of them. A checkpoint (model without "
        f"backbone, AdamW, figures of {options.epoch_batches // 2} batches: "
        f"{megabytes(size)} MB) takes {saving:.2f} s, written, hashed and synced to a "
        f"temporary directory, once in {options.checkpoint_interval} updates; figures "
        f"are read once in {options.log_interval} batches. Whole updates in turns, "
        f"with statistics against without: {timings.ratio('ours', 'bare')} "
        f"({options.rounds} rounds; the spread of an update is larger than the cost)."
    )
    return [explanation, table]
