"""Memory that is counted, against what optimizers really hold; peaks measured."""

import numpy as np
import pytest
import torch
from torch import nn

import espnet2_lamer.train.memory as module
from espnet2_lamer.train.memory import PeakMemory, count_model, optimizer_bytes
from espnet2_lamer.train.schedulers import PolynomialDecayLR

OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, {}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "adagrad": (torch.optim.Adagrad, {}),
}


def make_model():
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizers_state_is_known_before_its_first_update(name):
    torch.manual_seed(0)
    model = make_model()
    kind, options = OPTIMIZERS[name]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = kind(trained, **options)
    # A schedule replaces the object's `step` by one that is bound to it.
    PolynomialDecayLR(optimizer, warmup_steps=1, total_steps=9)
    before = [p.detach().clone() for p in trained]
    drawn = torch.get_rng_state()
    found = optimizer_bytes(optimizer)
    assert all(torch.equal(p, q) for p, q in zip(trained, before, strict=True))
    assert torch.equal(torch.get_rng_state(), drawn)
    model(torch.randn(4, 5)).sum().backward()
    optimizer.step()
    real = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    assert found == real == optimizer_bytes(optimizer)


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.Adafactor])
def test_an_optimizer_that_needs_a_closure_or_values_is_not_counted(kind):
    assert optimizer_bytes(kind(make_model()[2].parameters())) is None


def test_parameters_buffers_and_gradients_are_counted():
    model = make_model()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad])
    found = count_model(model, optimizer)
    trained = 2 * 7 + 7 * 3 + 3
    frozen = 5 * 7 + 7
    # BatchNorm's two means and its counter of eight bytes.
    assert found["parameters"] == 4 * (trained + frozen + 2 * 7) + 8
    assert found["gradients"] == 4 * trained
    assert found["optimizer"] == 0
    assert count_model(model, optimizer, gradient_copy=True)["gradients"] == 8 * trained


def test_the_peak_of_a_block_is_what_it_held_at_most():
    size = 64 * 2**20
    old = np.ones(3 * size, dtype=np.uint8)
    del old  # An earlier peak, higher than the block's.
    memory = PeakMemory("cpu")
    with memory.measure():
        held = np.ones(size, dtype=np.uint8)
        del held
        np.ones(size // 4, dtype=np.uint8)
    assert memory.method == "peak resident memory of the process"
    assert size * 0.9 < memory.bytes < size * 1.5


def test_memory_that_was_freed_before_is_counted_when_it_is_used_again():
    """Small blocks, which the C library keeps; the last one is above all others."""
    memory = PeakMemory("cpu")
    used = [torch.ones(2**14) for _ in range(1000)]
    last = torch.ones(2**14)
    del used
    with memory.measure():
        used = [torch.ones(2**14) for _ in range(1000)]
    assert 0.9 < memory.bytes / (1000 * 2**16) < 1.5
    del used, last


def test_a_gpu_is_asked_for_its_own_peak(monkeypatch):
    calls = []
    for name, value in (
        ("reset_peak_memory_stats", None),
        ("memory_allocated", 300),
        ("max_memory_allocated", 1000),
    ):
        monkeypatch.setattr(
            module.torch.cuda, name, lambda n=name, v=value: calls.append(n) or v
        )
    memory = PeakMemory("cuda")
    with memory.measure():
        calls.append("block")
    assert memory.bytes == 700
    assert calls == [
        *("reset_peak_memory_stats", "memory_allocated", "block"),
        "max_memory_allocated",
    ]
