"""Routing is recorded inside the block, once per router, and nowhere else."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from espnet2_lamer.layers import (
    LamerConfig,
    LamerFeedForward,
    add_lamer,
    record_routing,
)


def speech():
    return torch.randn(2, 2400, generator=torch.Generator().manual_seed(5))


def lamer_layers(model):
    return [m for m in model.modules() if isinstance(m, LamerFeedForward)]


def test_recording_is_off_outside_the_block(tiny_hubert):
    model = add_lamer(tiny_hubert(), LamerConfig("2,4"))
    model(speech())
    assert all(layer.record is None for layer in lamer_layers(model))
    with record_routing(model) as record:
        pass
    model(speech())
    assert len(list(record)) == 0
    assert all(layer.record is None for layer in lamer_layers(model))


def test_recording_ends_when_the_block_fails(tiny_hubert):
    model = add_lamer(tiny_hubert(), LamerConfig("2,4"))
    with pytest.raises(KeyError), record_routing(model):
        raise KeyError
    assert all(layer.record is None for layer in lamer_layers(model))


def test_a_block_inside_a_block_gives_the_record_back(tiny_hubert):
    model = add_lamer(tiny_hubert(), LamerConfig("2,4"))
    with record_routing(model) as outer:
        with record_routing(model) as inner:
            model(speech())
        assert (len(outer), len(inner)) == (0, 2)
        model(speech())
    assert len(outer) == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(0, "ffn", 2), (1, "ffn", 4)]),
        (
            {"router": "projection"},
            [
                (layer, name, 2 + 2 * layer)
                for layer in (0, 1)
                for name in ("intermediate_dense", "output_dense")
            ],
        ),
    ],
)
def test_one_entry_per_router_in_layer_order(tiny_hubert, options, expected):
    model = add_lamer(tiny_hubert(), LamerConfig("2,4", **options))
    with record_routing(model) as record:
        model(speech())
        model(speech())
    assert [(r.layer, r.name, r.probs.shape[-1]) for r in record] == expected
    for routing in record:
        assert (
            routing.probs.shape == routing.gates.shape == (2, 7, routing.probs.shape[2])
        )
        assert routing.probs.requires_grad


def test_layers_without_router_leave_no_entry(tiny_hubert):
    model = add_lamer(tiny_hubert(layers=4), LamerConfig("0,1,2,4"))
    with record_routing(model) as record:
        model(speech())
    assert [r.layer for r in record] == [2, 3]


def test_a_layer_recomputed_in_the_backward_pass_is_recorded_once(fill_experts):
    from torchaudio.models.wav2vec2.components import FeedForward

    torch.manual_seed(0)
    module = fill_experts(
        LamerFeedForward(FeedForward(8, 12, 0.0, 0.0), 4, LamerConfig(rank=2))
    )
    x = torch.randn(2, 5, 8)
    weights = []
    for recompute in (False, True):
        module.zero_grad()
        with record_routing(module) as record:
            y = checkpoint(module, x, use_reentrant=False) if recompute else module(x)
        (routing,) = record
        probs = routing.probs
        (y.sum() + routing.probs.pow(2).sum()).backward()
        assert next(iter(record)).probs is probs
        weights.append(module.routers["ffn"].weight.grad.clone())
    assert torch.equal(*weights)
