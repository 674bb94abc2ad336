"""Section ``counts``: what an update asks a GPU to do, counted without a GPU."""

import logging
import operator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.fake_gpu import fake_gpu, on_fake_gpu, to_fake_gpu
from benchmarks.launches import Count, Counting
from benchmarks.options import option
from benchmarks.preset import (
    PAPER,
    collated,
    micro_batch_seconds,
    micro_batches,
    prepare,
    read_preset,
    row_lengths,
)
from benchmarks.report import Table, verdict

TITLE = "kernels, casts, bytes and waits of an update, from fake tensors"
DEVICES = ("cpu",)
# An update of the paper preset has so much audio.
UPDATE_SECONDS = 225.0
# Per 225 s of audio.
MOST_KERNELS, MOST_CASTS, MOST_WAITS, MOST_BREAKS = 3000, 50, 0, 0


@dataclass(frozen=True)
class Options:
    """What is counted; 0 takes the config's own."""

    config: str = option(PAPER, "training config")
    seconds: float = option(
        0.0, "seconds of audio of a micro-batch, padding included; 0: the config's"
    )
    layers: int = option(0, "transformer layers; 0: the config's")
    width: int = option(0, "width of the network; 0: the config's")
    units: int = option(1000, "classes K")
    compiled: str = option(
        "encoder._network", "part of the model whose graph breaks are counted, or none"
    )
    operations: int = option(15, "rows of the table of operations")


QUICK = Options(layers=4, width=32, units=10, seconds=4.0, operations=5)


@dataclass
class UpdateCounts:
    """Counts of one update after the first one.

    ``first`` and ``later`` are the micro-batches of an update (a later one adds its
    gradients up), ``step`` is clipping and the optimizer. ``seconds`` of audio, padding
    included, are in a micro-batch of ``rows`` utterances, ``micro_batches`` in an
    update.
    """

    first: Counting
    later: Counting
    step: Counting
    seconds: float
    rows: int
    micro_batches: int

    def update(self) -> Count:
        """Sum over an update."""
        later = total(self.later) * (self.micro_batches - 1)
        return total(self.first) + later + total(self.step)


def total(counting: Counting) -> Count:
    """Sum over the parts."""
    return sum(counting.parts.values(), Count())


def count_update(options: Options) -> UpdateCounts:
    """Run two updates on a fake GPU and count the second.

    The first one makes the optimizer's state. Model, collate function, optimizer and
    the update are the training's own.
    """
    from espnet2.train.reporter import SubReporter

    from espnet2_lamer.tasks.hubert import LamerHubertTask
    from espnet2_lamer.train.figures import Figures
    from espnet2_lamer.train.update import Updater

    args = read_preset(options.config, options.units, options.layers, options.width)
    seconds = micro_batch_seconds(args, options.seconds)
    crop = LamerHubertTask.build_collate_fn(args, train=True).max_samples
    lengths = row_lengths(seconds, crop)
    on_host = collated(args, lengths)
    number = micro_batches(args, seconds)
    with torch.device("meta"):
        model = LamerHubertTask.build_model(args)
    counting = Counting()

    def note(*operation: Any) -> None:
        counting.note(*operation)

    with fake_gpu(note, lambda: counting.during("backward")):
        to_fake_gpu(model).train()
        prepare([model])
        (optimizer,) = LamerHubertTask.build_optimizers(args, model)
        batch = {key: on_fake_gpu(value) for key, value in on_host.items()}
        updater = Updater(model, optimizer, None, None, args)
        figures = Figures(SubReporter("train", 1, 0))
        names = [f"utt{row}" for row in range(len(lengths))]

        def add(last: bool) -> Counting:
            nonlocal counting
            counting = Counting()
            updater.add(names, batch, figures, last)
            return counting

        def step() -> Counting:
            nonlocal counting
            counting = Counting(part="update")
            updater.step(figures)
            figures.next()
            return counting

        add(True)
        step()
        first = add(False)
        later = add(True)
        done = step()
    return UpdateCounts(first, later, done, seconds, len(lengths), number)


def graph_breaks(options: Options) -> tuple[int, list[str]]:
    """Count what splits a part of the model when torch compiles it.

    A small network of the config's kind runs on the CPU, and ``torch._dynamo`` reads
    the part where the model calls it; nothing is compiled.

    Returns:
        Number of breaks, and each reason with the place in the code.
    """
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    args = read_preset(options.config, 10, layers=4, width=32, ngpu=0)
    args.amp_dtype = "none"
    model = LamerHubertTask.build_model(args).train()
    model.keep_frozen()
    batch = collated(args, [8000, 7600])
    parent, _, name = options.compiled.rpartition(".")
    owner = operator.attrgetter(parent)(model) if parent else model
    found: list[Any] = []
    part = getattr(owner, name)
    target, name = (part, "forward") if isinstance(part, nn.Module) else (owner, name)
    original = getattr(target, name)

    def explained(*args: Any, **kwargs: Any) -> Any:
        found.append(torch._dynamo.explain(original)(*args, **kwargs))
        return original(*args, **kwargs)

    # Breaks are this function's result; as warnings they would be said twice.
    logger = logging.getLogger("torch._dynamo")
    level = logger.level
    logger.setLevel(logging.ERROR)
    torch._dynamo.reset()
    try:
        with mock.patch.object(target, name, explained):
            model(**batch)
    finally:
        torch._dynamo.reset()
        logger.setLevel(level)
    reasons = []
    for reason in found[0].break_reasons:
        frame = reason.user_stack[-1] if reason.user_stack else None
        where = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" if frame else "?"
        reasons.append(f"{where} {reason.reason.splitlines()[0]}")
    return found[0].graph_break_count, reasons


def _row(name: str, count: Count, targets: str = "") -> list[str]:
    return [
        name,
        str(count.kernels),
        str(count.casts),
        f"{count.bytes / 1e9:.3g}",
        f"{count.flops / 1e12:.3g}",
        str(count.reads),
        str(count.writes),
        targets,
    ]


def run(options: Options, device: str) -> list[str | Table]:
    """Count one update; returns text and tables."""
    counts = count_update(options)
    header = ["part", "kernels", "casts", "GB moved", "TFLOP"]
    header += ["reads", "blocking writes", "target"]
    what = f"{counts.seconds:g} s of audio in {counts.rows} rows"
    table = Table(f"one update, micro-batches of {what}", header)
    for name, counting in (("first", counts.first), ("later", counts.later)):
        if name == "later" and counts.micro_batches == 1:
            continue
        for part, count in counting.parts.items():
            table.rows.append(_row(f"{name} micro-batch, {part}", count))
        table.rows.append(_row(f"{name} micro-batch", total(counting)))
    table.rows.append(_row("clipping and optimizer", total(counts.step)))
    update = counts.update()
    whole = counts.seconds * counts.micro_batches
    judged = options.layers == 0 == options.width
    targets = [
        f"kernels {verdict(update.kernels, '<=', MOST_KERNELS)}",
        f"casts {verdict(update.casts, '<=', MOST_CASTS)}",
        f"waits {verdict(update.waits, '<=', MOST_WAITS)}",
    ]
    name = f"update of {counts.micro_batches} micro-batches, {whole:g} s"
    table.rows.append(_row(name, update, ", ".join(targets) if judged else ""))
    one = counts.first if counts.micro_batches == 1 else counts.later
    waits = Table("where the host waits", ["place", "times per micro-batch or update"])
    for counting in (one, counts.step):
        waits.rows += [[place, str(n)] for place, n in counting.waits.most_common()]
    operations = Table("operations of a micro-batch", ["operation", "kernels"])
    rows = one.operations.most_common(options.operations)
    operations.rows += [[name, str(number)] for name, number in rows]
    blocks: list[str | Table] = [_explanation(options), table, operations]
    blocks += [waits] if waits.rows else []
    if options.compiled != "none":
        number, reasons = graph_breaks(options)
        title = f"graph breaks of `{options.compiled}`"
        broken = Table(title, ["breaks", "reasons, each once", "target"])
        target = verdict(number, "<=", MOST_BREAKS)
        broken.rows.append([str(number), "; ".join(dict.fromkeys(reasons)), target])
        blocks.append(broken)
    return blocks


def _explanation(options: Options) -> str:
    return (
        f"`{options.config}` with K = {options.units}: model, collate function, "
        "optimizer and update are the training's own, on fake tensors of device "
        "`cuda`, bf16 autocast; the second update is counted. A kernel is an operation "
        "of torch below autograd and autocast that touches GPU memory (views and "
        "allocations are none, lists of tensors cost the launches of torch's "
        "multi-tensor-apply, a mask as index one more); a cast is a kernel that only "
        "changes a dtype; a wait is a value that the host reads, or one that it copies "
        "to the GPU from memory that is not pinned. Nothing is compiled: what "
        "torch.compile fuses is counted one by one. `benchmarks/launches.py` has the "
        "rules in full."
    )
