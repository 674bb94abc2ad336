"""Inserting experts: equal to the base at the start, only experts and routers train."""

import copy

import pytest
import torch
from torchaudio.models.wav2vec2.components import FeedForward

from espnet2_lamer.layers import (
    LamerConfig,
    LamerFeedForward,
    Router,
    add_lamer,
    record_routing,
)
from espnet2_lamer.layers.experts import LoRAExperts

FAMILY = [
    {"allocation": "2,4"},
    {"allocation": "4,8", "top_k": 1},
    {"allocation": 5, "top_k": None, "balance": "none"},
    {"allocation": 1, "rank": 3},
    {"allocation": "0,4", "router": "projection", "balance": "bias"},
    {"allocation": 4, "targets": ["output_dense"], "router": "projection"},
    {"allocation": "2,4", "targets": ["ffn"]},
    {"allocation": 3, "targets": ["ffn", "output_dense"], "router": "projection"},
]


def speech():
    generator = torch.Generator().manual_seed(5)
    lengths = torch.tensor([2400, 1600])
    return torch.randn(2, 2400, generator=generator), lengths


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("options", FAMILY)
def test_before_the_first_update_every_layer_equals_the_base_to_the_bit(
    tiny_hubert, options, autocast
):
    base = tiny_hubert()
    lamer = add_lamer(copy.deepcopy(base), LamerConfig(**options))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected, _ = base.extract_features(*speech())
        found, _ = lamer.extract_features(*speech())
    assert len(found) == 2
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("options", FAMILY)
def test_only_experts_and_routers_require_gradients(tiny_hubert, options):
    model = add_lamer(tiny_hubert(), LamerConfig(**options))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    expected = {
        f"{name}.{own}"
        for name, module in model.named_modules()
        for kind, owns in (
            (LoRAExperts, ("lora_A", "lora_B")),
            (Router, ("weight",)),
        )
        if isinstance(module, kind)
        for own in owns
    }
    assert trained == expected
    assert all(".feed_forward." in name for name in trained)


def test_the_allocation_decides_which_layers_change(tiny_hubert):
    model = add_lamer(tiny_hubert(layers=4), LamerConfig("0,1,2,4"))
    ffns = [layer.feed_forward for layer in model.encoder.transformer.layers]
    assert isinstance(ffns[0], FeedForward)
    assert [ffn.num_experts for ffn in ffns[1:]] == [1, 2, 4]
    assert [len(ffn.routers) for ffn in ffns[1:]] == [0, 1, 1]
    assert [ffn.layer for ffn in ffns[1:]] == [1, 2, 3]


def test_routers_read_the_input_of_what_they_serve(tiny_hubert):
    def dims(**options):
        model = add_lamer(tiny_hubert(dim=16, ffn=32), LamerConfig("4", **options))
        routers = model.encoder.transformer.layers[0].feed_forward.routers
        return {name: router.weight.shape[1] for name, router in routers.items()}

    assert dims() == {"ffn": 16}
    assert dims(targets=["output_dense"]) == {"ffn": 16}
    assert dims(router="projection") == {"intermediate_dense": 16, "output_dense": 32}
    assert dims(router="projection", targets=["output_dense"]) == {"output_dense": 32}
    both = ["output_dense", "ffn"]
    assert dims(router="projection", targets=both) == {"output_dense": 32, "ffn": 16}


def test_inserting_twice_or_into_too_few_layers_is_refused(tiny_hubert):
    with pytest.raises(ValueError, match="3 groups, but 2 layers"):
        add_lamer(tiny_hubert(), LamerConfig("2,4,6"))
    model = add_lamer(tiny_hubert(), LamerConfig("2"))
    with pytest.raises(ValueError, match="has LoRA experts already"):
        add_lamer(model, LamerConfig("2"))


def test_every_expert_that_is_picked_learns_and_the_others_get_zero():
    torch.manual_seed(1)
    module = LamerFeedForward(FeedForward(8, 12, 0.0, 0.0), 4, LamerConfig(rank=2))
    x = torch.randn(2, 40, 8)
    target = torch.randn(2, 40, 8)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for update in range(2):
        optimizer.zero_grad()
        with record_routing(module) as record:
            loss = (module(x) - target).pow(2).mean()
        loss.backward()
        gates = next(iter(record)).gates
        assert (gates > 0).flatten(0, 1).any(0).all()
        for name in ("intermediate_dense", "output_dense"):
            linear = getattr(module, name)
            grads = {
                "A": linear.lora_A.grad.flatten(1),
                "B": linear.lora_B.grad.unflatten(1, (4, 2)).transpose(0, 1).flatten(1),
            }
            for which, grad in grads.items():
                assert grad.isfinite().all()
                # B starts at zero, so at first nothing reaches A.
                learns = which == "B" or update > 0
                assert bool((grad.abs().sum(1) > 0).all()) is learns
        if update == 0:
            optimizer.step()
    assert module.routers["ffn"].weight.grad.abs().sum() > 0

    # An expert that no frame picks gets a gradient of zero, not None.
    with torch.no_grad():
        module.routers["ffn"].weight.zero_()
        module.routers["ffn"].weight[2, 0] = module.routers["ffn"].weight[3, 0] = 9.0
    optimizer.zero_grad()
    module(x[..., :].abs()).sum().backward()
    grad = module.output_dense.lora_A.grad.flatten(1).abs().sum(1)
    assert (grad[:2] == 0).all() and (grad[2:] > 0).all()


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"router": "ffn", "balance": "loss"},
        {"router": "projection", "balance": "bias"},
        {"top_k": None, "targets": ["ffn"]},
        {"top_k": 1, "dropout": 0.0, "alpha": 3.0},
    ],
)
def test_the_layer_compiles_as_one_graph(options, recorded, fill_experts):
    torch._dynamo.reset()
    module = LamerFeedForward(
        FeedForward(8, 12, 0.0, 0.0), 4, LamerConfig(rank=2, **options)
    )
    fill_experts(module)
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")

    def run(function):
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        if not recorded:
            y = function(leaf)
            loss = y.square().sum()
        else:
            with record_routing(module) as record:
                y = function(leaf)
            assert len(list(record)) == len(module.routers)
            loss = y.square().sum() + sum((r.probs * r.gates).sum() for r in record)
        loss.backward()
        trained = [p.grad.clone() for p in module.parameters() if p.requires_grad]
        return [y.detach(), leaf.grad, *trained]

    for ours, theirs in zip(run(compiled), run(module), strict=True):
        torch.testing.assert_close(ours, theirs)
