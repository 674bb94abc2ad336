"""Weights in the type of a forward pass: copies, their gradients, routers' parts."""

import pytest
import torch
from torch import nn

from espnet2_lamer.layers import (
    LamerConfig,
    LamerFeedForward,
    Router,
    products,
    working,
)
from espnet2_lamer.layers.working import in_type, working_copies


def test_copies_are_found_inside_the_block_and_carry_gradients_home():
    trained, frozen = (nn.Parameter(torch.randn(4, 3)) for _ in range(2))
    unused = nn.Parameter(torch.randn(2))
    frozen.requires_grad_(False)
    with working_copies([trained, frozen, unused], torch.bfloat16) as copies:
        assert copies.keys() == {trained, frozen, unused}
        copy = in_type(trained, torch.bfloat16)
        assert copy is copies[trained] and copy.dtype == torch.bfloat16
        assert torch.equal(copy, trained.bfloat16())
        # What is frozen stays so.
        assert not in_type(frozen, torch.bfloat16).requires_grad
        # Another type, and none at all.
        assert in_type(trained, torch.float16).dtype == torch.float16
        assert in_type(trained, torch.float32) is trained
        assert in_type(None, torch.bfloat16) is None
        direction = torch.randn(4, 3).bfloat16()
        (copy * direction).sum().backward()
    assert trained.grad.dtype == torch.float32
    assert torch.equal(trained.grad, direction.float())
    assert unused.grad is None and frozen.grad is None
    assert in_type(trained, torch.bfloat16) is not copy
    with working_copies([trained], None) as copies:
        assert not copies and in_type(trained, torch.float32) is trained


@pytest.mark.parametrize("top_k", [1, 2, None])
def test_a_router_of_half_precision_frames_is_as_exact_in_parts(top_k, monkeypatch):
    # Only a GPU has the product with float32 sums; here it is done in float64.
    monkeypatch.setattr(
        products, "wide_product", lambda a, b: (a.double() @ b.double()).float()
    )
    torch.manual_seed(0)
    router = Router(64, 5, top_k)
    x = torch.randn(200, 64).bfloat16().requires_grad_()
    direction = torch.randn(200, 5)

    def run():
        router.zero_grad()
        x.grad = None
        gates, probs = router(x)
        ((gates + probs) * direction).sum().backward()
        return probs.detach(), router.weight.grad.clone(), x.grad.clone()

    expected = run()
    rest, parts = router.weight.detach(), []
    for _ in range(working.PARTS):
        parts.append(rest.bfloat16())
        rest = rest - parts[-1]
    assert rest.abs().max() <= 2**-24 * router.weight.abs().max()
    parts = {router.weight: torch.stack(parts, 1)}
    monkeypatch.setattr(working, "_current_parts", parts)
    probs, of_weight, of_x = run()
    torch.testing.assert_close(probs, expected[0], rtol=1e-5, atol=1e-6)
    # The gradients are products of bf16.
    for ours, theirs in ((of_weight, expected[1]), (of_x, expected[2])):
        assert ours.dtype == theirs.dtype
        error = (ours - theirs).float().norm() / theirs.float().norm()
        assert error < 0.01


@pytest.mark.parametrize("targets", [("intermediate_dense", "output_dense"), ("ffn",)])
@pytest.mark.parametrize("count", [1, 4])
def test_some_frames_of_a_layer_are_those_of_all(targets, count):
    from torchaudio.models.wav2vec2.components import FeedForward

    torch.manual_seed(0)
    config = LamerConfig(rank=2, targets=targets)
    layer = LamerFeedForward(FeedForward(8, 12, 0.0, 0.0), count, config)
    for name, parameter in layer.named_parameters():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter)
    x, rows = torch.randn(20, 8), torch.tensor([3, 4, 11, 19])
    torch.testing.assert_close(layer(x, rows), layer(x)[rows])
