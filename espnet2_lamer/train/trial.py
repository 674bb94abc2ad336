"""One batch without a trace: what time and memory will training take?"""

import copy
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from espnet2_lamer.data.speech import SAMPLE_RATE
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.hubert.language_statistics import LanguageStatistics
from espnet2_lamer.hubert.routing_statistics import RoutingStatistics
from espnet2_lamer.train.memory import PeakMemory
from espnet2_lamer.train.states import random_state, set_random_state


@dataclass(frozen=True)
class Rehearsal:
    """What one batch took on this rank.

    Attributes:
        audio: Seconds of audio, padding included.
        seconds: Forward and backward.
        activations: Peak bytes above what the process held, see :class:`PeakMemory`.
        method: How the peak was measured.
    """

    audio: float
    seconds: float
    activations: int
    method: str


def rehearse(model: nn.Module, batch: dict[str, Tensor], device: str) -> Rehearsal:
    """Run a batch twice: once for memory, once warm for time.

    Weights, buffers, gradients, statistics and random numbers are afterwards what they
    were before. In distributed training all ranks must call this together.

    Args:
        model: ``LamerHubertPretrainModel``, not wrapped, without gradients.
        batch: On the model's device.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        RecipeError: The GPU has not enough memory.
    """
    memory = PeakMemory(device)
    audio = batch["speech"].numel() / SAMPLE_RATE
    with without_a_trace(model):
        model.train()
        try:
            with memory.measure():
                _pass(model, batch)
            _wait(device)
            started = time.perf_counter()
            _pass(model, batch)
            _wait(device)
        except torch.OutOfMemoryError as error:
            raise RecipeError(
                f"the largest batch of the epoch, {audio:.1f} s of audio on this GPU, "
                f"does not fit into its memory ({str(error).splitlines()[0]}); lower "
                "batch_bins and raise accum_grad by the same factor"
            ) from error
        seconds = time.perf_counter() - started
    return Rehearsal(audio, seconds, memory.bytes, memory.method)


def _pass(model: nn.Module, batch: dict[str, Tensor]) -> None:
    model(**batch)[0].backward()
    model.zero_grad(set_to_none=True)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def without_a_trace(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> Iterator[None]:
    """Undo what the block does to the model and to random numbers.

    Args:
        model: ``LamerHubertPretrainModel``. Its statistics count nothing meanwhile.
        optimizer: Given where the block updates weights: these and the optimizer's
            state are then undone, too.
    """
    tensors = list(model.buffers())
    if optimizer is not None:
        tensors += [p for p in model.parameters() if p.requires_grad]
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    state: Any = None if optimizer is None else copy.deepcopy(optimizer.state_dict())
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device.type
    randomness = random_state(device)
    statistics = model.routing_statistics, model.language_statistics
    # These count for nobody, and write no file.
    model.routing_statistics = RoutingStatistics(interval=sys.maxsize)
    model.language_statistics = LanguageStatistics()
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)
        model.zero_grad(set_to_none=True)
        if optimizer is not None:
            optimizer.load_state_dict(state)
        for module, training in modes:
            module.training = training
        set_random_state(randomness, device)
        model.routing_statistics, model.language_statistics = statistics
