"""Norms of experts and routers against the plain products of their matrices."""

import pytest
import torch

from espnet2_lamer.layers import LamerConfig, add_lamer
from espnet2_lamer.layers.feed_forward import LamerFeedForward
from espnet2_lamer.layers.norms import frozen_norms, norm_vector, norms_of, update_norms

SHAPES = [(1, 1, 3, 5), (1, 12, 40, 7), (5, 4, 16, 16), (8, 12, 24, 96)]


@pytest.mark.parametrize(("count", "rank", "d_in", "d_out"), SHAPES)
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_update_norms_are_those_of_the_plain_products(count, rank, d_in, d_out, scale):
    generator = torch.Generator().manual_seed(count * rank)
    a = torch.randn(count, rank, d_in, generator=generator)
    b = torch.randn(d_out, count * rank, generator=generator)
    found = update_norms(a, b, scale)
    for k in range(count):
        product = scale * b[:, k * rank : (k + 1) * rank].double() @ a[k].double()
        assert found[k].item() == pytest.approx(product.norm().item(), rel=1e-10)


def test_the_norm_of_an_update_that_cancels_is_not_lost():
    # B A is zero although neither factor is: B's columns are equal, A's rows opposite.
    row = torch.randn(1, 6)
    a = torch.cat([row, -row])[None]
    b = torch.randn(4, 1).repeat(1, 2)
    assert update_norms(a, b).item() == pytest.approx(0.0, abs=1e-6)
    assert update_norms(a, torch.zeros(4, 2)).item() == 0.0


def linear_of(module):
    return getattr(module, "base", module).weight.double()


@pytest.mark.parametrize("router", ["ffn", "projection"])
@pytest.mark.parametrize(
    "targets",
    [
        ["intermediate_dense", "output_dense"],
        ["output_dense"],
        ["ffn"],
        ["ffn", "intermediate_dense"],
    ],
)
@pytest.mark.parametrize("allocation", ["1,3", "2"])
def test_norms_of_a_model_name_every_expert_and_router(
    tiny_hubert, fill_experts, router, targets, allocation
):
    config = LamerConfig(allocation, rank=3, alpha=6, router=router, targets=targets)
    model = fill_experts(add_lamer(tiny_hubert(), config))
    frozen = frozen_norms(model)
    found = norms_of(model, frozen)
    experts, routers = {}, {}
    for index, layer in enumerate(model.encoder.transformer.layers):
        module = layer.feed_forward
        assert isinstance(module, LamerFeedForward)
        first, last = (
            linear_of(getattr(module, name))
            for name in ("intermediate_dense", "output_dense")
        )
        weights = {"intermediate_dense": first, "output_dense": last}
        weights["ffn"] = last @ first
        for target in targets:
            one = module.ffn_experts if target == "ffn" else getattr(module, target)
            experts[f"{index}.{target}"] = (one, weights[target])
        for name, one in module.routers.items():
            routers[f"{index}.{name}"] = one.weight.detach().double()
    assert found["experts"].keys() == experts.keys()
    assert found["routers"].keys() == routers.keys()
    for key, (one, weight) in experts.items():
        values = found["experts"][key]
        a, b = one.lora_A.detach().double(), one.lora_B.detach().double()
        for k in range(one.num_experts):
            b_k = b[:, 3 * k : 3 * k + 3]
            update = 2.0 * (b_k @ a[k]).norm().item()
            assert values["update"][k] == pytest.approx(update, rel=1e-6)
            share = update / weight.norm().item()
            assert values["share"][k] == pytest.approx(share, rel=1e-5)
            assert values["a"][k] == pytest.approx(a[k].norm().item(), rel=1e-6)
            assert values["b"][k] == pytest.approx(b_k.norm().item(), rel=1e-6)
    for key, weight in routers.items():
        rows = [row.norm().item() for row in weight]
        assert found["routers"][key]["row"] == pytest.approx(rows, rel=1e-6)


def test_a_state_dict_gives_what_the_model_gives(tiny_hubert, fill_experts):
    model = tiny_hubert()
    frozen = frozen_norms(model)
    fill_experts(add_lamer(model, LamerConfig("2,4", rank=2)))
    assert frozen_norms(model) == frozen
    trained = {
        name: value
        for name, value in model.state_dict().items()
        if "lora" in name or "routers" in name
    }
    assert norms_of(trained, frozen) == norms_of(model, frozen)
    without = norms_of(trained)
    assert all("share" not in one for one in without["experts"].values())


def test_a_model_without_experts_has_no_norms(tiny_hubert):
    entries, values = norm_vector(tiny_hubert())
    assert entries == [] and values.numel() == 0
    assert norms_of(tiny_hubert()) == {"experts": {}, "routers": {}}
