"""Batches tried before training: the largest, timed; one to learn (``--sanity``)."""

import argparse
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from espnet2.torch_utils.device_funcs import to_device
from espnet2.torch_utils.load_pretrained_model import load_pretrained_model
from espnet2.torch_utils.set_all_random_seed import set_all_random_seed
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import Reporter
from torch import Tensor, nn

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.hubert.espnet_model import index_mask
from espnet2_lamer.hubert.statistics import LanguageStatistics, RoutingLog, alone
from espnet2_lamer.train.checkpoint import random_state, set_random_state
from espnet2_lamer.train.figures import Figures
from espnet2_lamer.train.labels import count_labels, describe, text_files
from espnet2_lamer.train.update import Updater

# Learnt: a loss below this share of what the labels' own frequencies give, or
# an accuracy above the other.
ENTROPY_SHARE = 0.5
ACCURACY = 0.9
# Updates between two looks, and over which the rate rises.
_INTERVAL = 10


@dataclass(frozen=True)
class Trial:
    """Seconds of audio of one rank's batch, and of a pass; bytes at most.

    The peak is on a GPU the most that torch had allocated at a time, on a CPU the most
    that the process has had since it began.
    """

    audio: float
    seconds: float
    peak: int


class DoesNotFit(RecipeError):
    """The GPU has not enough memory for a batch."""


def try_batch(model: nn.Module, batch: dict[str, Tensor], device: str) -> Trial:
    """Run a batch forward and backward twice, the second time by the clock.

    A rank does so on its own, with its model as it is before it is wrapped.

    Raises:
        DoesNotFit: The GPU has not enough memory.
    """
    # Of some utterances there may be features in place of audio.
    padded = batch["speech"].shape[1] * len(batch["speech_lengths"])
    audio = padded / SAMPLE_RATE
    cuda = device == "cuda"
    with alone(), without_a_trace(model):
        model.train()
        try:
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            for _ in range(2):
                started = time.perf_counter()
                model(**batch)[0].backward()
                model.zero_grad(set_to_none=True)
                if cuda:
                    torch.cuda.synchronize()
                seconds = time.perf_counter() - started
        except torch.OutOfMemoryError as error:
            raise DoesNotFit(
                f"a batch of {audio:.1f} s of audio on this GPU does not fit into its "
                f"memory ({str(error).splitlines()[0]})"
            ) from None
    import resource  # not everywhere

    # Linux counts in KiB.
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = torch.cuda.max_memory_allocated() if cuda else resident
    return Trial(audio, seconds, peak)


@contextmanager
def without_a_trace(model: nn.Module) -> Iterator[None]:
    """Undo what passes do to a ``LamerHubertPretrainModel`` and to random numbers.

    Weights must stay as they are; statistics count nothing meanwhile.
    """
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device.type
    randomness = random_state(device)
    statistics = model.routing_statistics, model.language_statistics
    # These count for nobody, and write no file.
    model.routing_statistics = RoutingLog(interval=sys.maxsize)
    model.language_statistics = LanguageStatistics()
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)
        model.zero_grad(set_to_none=True)
        for module, training in modes:
            module.training = training
        set_random_state(randomness, device)
        model.routing_statistics, model.language_statistics = statistics


@dataclass(frozen=True)
class Sanity:
    """What became of one batch; losses in bits per masked frame, without dropout.

    ``unigram_bits`` is the entropy of the units: the loss of a model that knows how
    frequent they are, and no more.
    """

    frames: int
    unigram_bits: float
    initial_bits: float
    initial_accuracy: float
    final_bits: float
    final_accuracy: float
    updates: int

    @property
    def passed(self) -> bool:
        """Whether the batch was learnt."""
        return (
            self.final_bits < ENTROPY_SHARE * self.unigram_bits
            or self.final_accuracy > ACCURACY
        )


def overfit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    names: list[str],
    batch: dict[str, Tensor],
    options: Any,
) -> Sanity:
    """Train on one batch, with its crops and masks as they are, until it is learnt.

    The updates, of which there are at most ``sanity_updates``, are those of training,
    clipping and loss scale included, but for the rate: it is the configured peak,
    reached in ten. A batch without a masked frame raises ``RecipeError``.
    """
    updates = options.sanity_updates
    mask = index_mask(batch["mask_indices"], batch["text"].shape[1])
    labels = batch["text"][mask].cpu()
    if not labels.numel():
        raise RecipeError("sanity: the batch has no masked frame; raise batch_bins")
    unigram = describe(labels.bincount().numpy())["entropy_bits"]
    scaler = torch.amp.GradScaler("cuda", enabled=options.use_amp)
    updater = Updater(model, optimizer, None, scaler, options)
    first = bits, accuracy = _look(model, batch)
    logging.info(
        f"sanity: {labels.numel()} masked frames, their unigram {unigram:.3f} bits; at "
        f"first {bits:.3f} bits, accuracy {accuracy:.3f}"
    )
    rates = [g.get("initial_lr", g["lr"]) for g in optimizer.param_groups]
    figures = Figures(Reporter().start_epoch("train", 1))
    found = None
    for update in range(1, updates + 1):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, update / _INTERVAL)
        model.train()
        updater.add(names, batch, figures, last=True)
        updater.step(figures)
        figures.next()
        if update % _INTERVAL and update != updates:
            continue
        updater.settle()
        figures.flush()
        bits, accuracy = _look(model, batch)
        logging.info(
            f"sanity: update {update}, {bits:.3f} bits, accuracy {accuracy:.3f}"
        )
        found = Sanity(labels.numel(), unigram, *first, bits, accuracy, update)
        if found.passed:
            break
    return found


def _look(model: nn.Module, batch: dict[str, Tensor]) -> tuple[float, float]:
    """Loss in bits and accuracy on the masked frames, without dropout."""
    model.eval()
    with torch.no_grad():
        _, figures, _ = model(**batch)
    return float(figures["loss_m_bits"]), float(figures["acc_m"])


def check_sanity(task: type, args: argparse.Namespace) -> Sanity:
    """Overfit the first batch of a training and say whether it could be learnt.

    One process, from the base (and ``--init_param``), whatever the experiment has
    trained so far. Writes ``<output_dir>/sanity.json`` and nothing else.

    Raises:
        RecipeError: The batch was not learnt, or labels do not fit the audio.
    """
    task.check_required_command_args(args)
    set_all_random_seed(args.seed)
    report = Path(args.output_dir) / "sanity.json"
    # The model would add to the experiment's routing statistics.
    args = argparse.Namespace(**vars(args) | {"output_dir": None})
    device = "cuda" if args.ngpu > 0 else "cpu"
    model = task.build_model(args)
    model = model.to(dtype=getattr(torch, args.train_dtype), device=device)
    for name, parameter in model.named_parameters():
        if any(f"{name}.".startswith(f"{frozen}.") for frozen in args.freeze_param):
            parameter.requires_grad = False
    for source in args.init_param:
        load_pretrained_model(
            init_param=source,
            model=model,
            ignore_init_mismatch=args.ignore_init_mismatch,
            map_location="cpu",
        )
    model.keep_frozen()
    (optimizer,) = task.build_optimizers(args, model)
    factory = task.build_iter_factory(args, DistributedOption(), mode="train")
    text = text_files(args.train_data_path_and_name_and_type).get("text")
    if text is not None:
        count_labels(text, args.num_classes, factory.lengths)
    # What is computed at a time: all of a batch, or of an update what fits.
    names, batch = factory.load(factory.parts(factory.plan(1).numbers(0))[0])
    found = overfit(model, optimizer, names, to_device(batch, device), args)
    write_json(report, asdict(found) | {"passed": found.passed, "utterances": names})
    said = (
        f"{found.frames} masked frames: at first {found.initial_bits:.3f} bits, "
        f"accuracy {found.initial_accuracy:.3f}; after {found.updates} updates "
        f"{found.final_bits:.3f} bits, accuracy {found.final_accuracy:.3f}. Learnt "
        f"means below {ENTROPY_SHARE * found.unigram_bits:.3f} bits ({ENTROPY_SHARE:g} "
        f"of a guess by frequency), or an accuracy above {ACCURACY:g}"
    )
    if not found.passed:
        raise RecipeError(
            f"sanity: one batch could not be learnt ({report}). {said}. Look at "
            "optim_conf.lr, at what trains (--dry_run true), and whether the units "
            "belong to this audio; the head alone may not be able to"
        )
    logging.info("sanity: one batch could be learnt. %s", said)
    return found
