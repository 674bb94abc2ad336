"""Padding changes nothing: not valid frames, not the balance loss, not gradients."""

import math

import pytest
import torch
from torchaudio.models.wav2vec2.components import FeedForward

from espnet2_lamer.layers import (
    LamerConfig,
    LamerFeedForward,
    load_balancing_loss,
    record_routing,
)

REAL = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]


def run(module, padding):
    x = torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(2))
    x = x.masked_fill(~REAL[..., None], padding)
    module.zero_grad()
    with record_routing(module) as record:
        y = module(x)
    balance = sum(load_balancing_loss(r.probs, r.gates, REAL) for r in record)
    (y[REAL].pow(2).sum() + balance).backward()
    grads = [p.grad.clone() for p in module.parameters() if p.requires_grad]
    return y[REAL].detach(), balance.detach(), grads


@pytest.mark.parametrize("router", ["ffn", "projection"])
@pytest.mark.parametrize("top_k", [1, 2, None])
def test_what_stands_in_padding_changes_nothing(router, top_k, fill_experts):
    torch.manual_seed(0)
    config = LamerConfig(rank=2, top_k=top_k, router=router)
    module = fill_experts(LamerFeedForward(FeedForward(8, 12, 0.0, 0.0), 4, config))
    y, balance, grads = run(module, 0.0)
    assert y.isfinite().all() and balance.isfinite()
    for padding in (1e4, math.nan):
        other_y, other_balance, other_grads = run(module, padding)
        assert torch.equal(other_y, y)
        assert torch.equal(other_balance, balance)
        if padding == 1e4:
            for ours, theirs in zip(other_grads, grads, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
