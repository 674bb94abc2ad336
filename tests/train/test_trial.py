"""A trial leaves no trace, whatever the model keeps."""

from contextlib import nullcontext

import pytest
import torch

import espnet2_lamer.train.trial as module
from espnet2_lamer.train.trial import try_batch, without_a_trace


@pytest.fixture
def first_batch(make_parts):
    parts = make_parts(
        # Everything that a training forward pass changes or draws.
        langs=["cmn", "yue"],
        log_interval=1,
    )
    _, batch = next(iter(parts.train.build_iter(1)))
    return parts, batch


def test_two_passes_in_training_mode_leave_everything_as_it_was(first_batch):
    parts, batch = first_batch
    model = parts.model
    modes = [m.training for m in model.eval().modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    statistics = model.routing_statistics, model.language_statistics
    calls = []
    model.register_forward_pre_hook(lambda m, _: calls.append(m.training))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = try_batch(model, batch, "cpu")
    assert calls == [True, True]
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in model.modules()] == modes
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in state.items())
    assert all(p.grad is None for p in model.parameters())
    assert (model.routing_statistics, model.language_statistics) == statistics
    assert model.language_statistics.read() == {}
    assert not (parts.output / "routing.jsonl").exists()
    assert found.audio == batch["speech"].numel() / 16000
    assert found.seconds > 0 and found.peak > 0


def test_the_passes_would_have_left_traces(first_batch, monkeypatch):
    """The test above can fail: without its cover, a pass changes what it looks at."""
    parts, batch = first_batch
    model = parts.model
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = torch.get_rng_state()
    monkeypatch.setattr(module, "without_a_trace", nullcontext)
    try_batch(model, batch, "cpu")
    after = model.state_dict()
    changed = {key for key in state if not torch.equal(after[key], state[key])}
    assert "training_batches" in changed and any("load" in key for key in changed)
    assert not torch.equal(torch.get_rng_state(), before)
    assert (parts.output / "routing.jsonl").exists()


def test_an_error_inside_is_passed_on_and_the_model_still_restored(first_batch):
    parts, batch = first_batch
    count = int(parts.model.training_batches)
    with pytest.raises(KeyError), without_a_trace(parts.model):
        parts.model.train()(**batch)
        raise KeyError
    assert int(parts.model.training_batches) == count
