"""The fused form against loops over frames and experts written from the paper."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchaudio.models.wav2vec2.components import FeedForward

from espnet2_lamer.layers import (
    LamerConfig,
    LamerFeedForward,
    LoRAExpertLinear,
    Router,
    load_balancing_loss,
    record_routing,
)
from espnet2_lamer.layers.experts import LoRAExperts

LINEARS = ("intermediate_dense", "output_dense")


def agree(found, expected):
    """1e-6 of the tensor's largest value: the router computes in float32."""
    size = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=0, atol=1e-6 * size
    )


def loop_router(weight, h, top_k):
    """Eq. 3 and 4 for one frame ``h [d]``; the list of gates and the list of p."""
    scores = [torch.exp(torch.dot(row, h)) for row in weight]
    total = sum(scores)
    p = [score / total for score in scores]
    if top_k is None:
        return p, p
    order = sorted(range(len(p)), key=lambda k: -p[k].item())
    chosen = order[:top_k]
    if top_k == 1:
        # The stated departure: Eq. 4 would give 1 and the router no gradient.
        kept = {chosen[0]: p[chosen[0]]}
    else:
        kept_total = sum(p[k] for k in chosen)
        kept = {k: p[k] / kept_total for k in chosen}
    return [kept.get(k, torch.zeros((), dtype=h.dtype)) for k in range(len(p))], p


def loop_experts(weights, h, gates, y):
    """Eq. 2 and 5 for one frame on top of ``y``; the scale is alpha / r."""
    for gate, a, b in zip(gates, weights["a"], weights["b"], strict=True):
        y = y + weights["scale"] * gate * (b @ (a @ h))
    return y


def loop_ffn(linears, routers, x, top_k, one_router):
    """A whole Lamer module; output ``[B, T, D]`` and gates, probs per router."""
    rows, routing = [], {name: ([], []) for name in routers}

    def route(name, h):
        if not routers:
            return [torch.ones((), dtype=h.dtype)]
        gates, p = loop_router(routers[name], h, top_k)
        routing[name][0].append(torch.stack(gates))
        routing[name][1].append(torch.stack(p))
        return gates

    for start in x.flatten(0, 1):
        h = start
        shared = route("ffn", h) if one_router else None
        for name in LINEARS:
            weights = linears[name]
            y = weights["w0"] @ h + weights["bias"]
            if "a" in weights:
                y = loop_experts(weights, h, shared or route(name, h), y)
            h = F.gelu(y) if name == LINEARS[0] else y
        if "ffn" in linears:
            gates = shared or route("ffn", start)
            h = loop_experts(linears["ffn"], start, gates, h)
        rows.append(h)
    routing = {
        name: (torch.stack(gates), torch.stack(p))
        for name, (gates, p) in routing.items()
    }
    return torch.stack(rows).view_as(x), routing


def loop_balance(p, gates, real):
    """Eq. 7 over the real frames; f is normalised to sum 1."""
    num_experts = p.shape[1]
    m, counts = [0.0] * num_experts, [0] * num_experts
    frames = [t for t, keep in enumerate(real.flatten().tolist()) if keep]
    for t in frames:
        for k in range(num_experts):
            m[k] = m[k] + p[t, k] / len(frames)
            counts[k] += int(gates[t, k].item() > 0)
    return num_experts * sum(
        m[k] * (counts[k] / sum(counts)) for k in range(num_experts)
    )


def build(rng, num_experts, top_k, router, targets):
    """A float64 Lamer module with random shapes, rank, alpha and weights."""
    dim, ffn = (int(n) for n in rng.integers(3, 9, 2))
    config = LamerConfig(
        rank=int(rng.integers(1, 4)),
        alpha=[None, 2.5][rng.integers(2)],
        top_k=top_k,
        targets=targets,
        router=router,
    )
    torch.manual_seed(int(rng.integers(1 << 30)))
    module = LamerFeedForward(FeedForward(dim, ffn, 0.0, 0.0), num_experts, config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    x = torch.randn(2, int(rng.integers(2, 5)), dim, dtype=torch.float64)
    return module.double(), x.requires_grad_()


def experts(module, name):
    """The part of the module that a target names."""
    return module.ffn_experts if name == "ffn" else getattr(module, name)


def unfuse(module):
    """Independent leaf tensors per expert, as the equations name them."""
    linears = {}
    for name in (*LINEARS, "ffn"):
        linear = experts(module, name)
        if linear is None:
            continue
        weights = {}
        if name in LINEARS:
            base = getattr(linear, "base", linear)
            weights = {"w0": base.weight.detach(), "bias": base.bias.detach()}
        if isinstance(linear, LoRAExperts):
            r = linear.rank
            columns = [
                linear.lora_B[:, k * r : (k + 1) * r] for k in range(len(linear.lora_A))
            ]
            weights["a"] = [a.detach().clone().requires_grad_() for a in linear.lora_A]
            weights["b"] = [b.detach().clone().requires_grad_() for b in columns]
            weights["scale"] = linear.scale
        linears[name] = weights
    routers = {
        name: router.weight.detach().clone().requires_grad_()
        for name, router in module.routers.items()
    }
    return linears, routers


def cases():
    for num_experts in (1, 2, 4, 8):
        for top_k in (1, 2, 3, None):
            if num_experts > 1 and top_k is not None and top_k > num_experts:
                continue
            for router in ("ffn", "projection"):
                for targets in (
                    LINEARS,
                    LINEARS[:1],
                    LINEARS[1:],
                    ("ffn",),
                    ("output_dense", "ffn"),
                ):
                    yield num_experts, top_k, router, targets


@pytest.mark.parametrize(("num_experts", "top_k", "router", "targets"), list(cases()))
def test_values_balance_and_all_gradients_equal_the_loops(
    num_experts, top_k, router, targets
):
    seed = [num_experts, top_k or 9, len(router), *map(len, targets)]
    rng = np.random.default_rng(seed)
    module, x = build(rng, num_experts, top_k, router, targets)
    real = torch.ones(x.shape[:2], dtype=torch.bool)
    real[1, int(rng.integers(1, x.shape[1])) :] = False
    direction = torch.randn_like(x)

    with record_routing(module) as record:
        y = module(x)
    balance = {r.name: load_balancing_loss(r.probs, r.gates, real) for r in record}
    (torch.sum(y * direction) + sum(balance.values())).backward()

    linears, routers = unfuse(module)
    x_loop = x.detach().clone().requires_grad_()
    y_loop, routing = loop_ffn(linears, routers, x_loop, top_k, router == "ffn")
    balance_loop = {n: loop_balance(p, g, real) for n, (g, p) in routing.items()}
    (torch.sum(y_loop * direction) + sum(balance_loop.values())).backward()

    agree(y, y_loop)
    assert len(list(record)) == len(routers)
    if num_experts > 1:
        assert set(routers) == ({"ffn"} if router == "ffn" else set(targets))
    for entry in record:
        gates, p = routing[entry.name]
        agree(entry.gates.flatten(0, 1), gates)
        agree(entry.probs.flatten(0, 1), p)
        agree(balance[entry.name], balance_loop[entry.name])

    agree(x.grad, x_loop.grad)
    for name in targets:
        linear, weights = experts(module, name), linears[name]
        if name in LINEARS:
            assert linear.base.weight.grad is None
        for grad, leaves in (
            (linear.lora_A.grad, weights["a"]),
            (
                linear.lora_B.grad.unflatten(1, (num_experts, -1)).unbind(1),
                weights["b"],
            ),
        ):
            for ours, leaf in zip(grad, leaves, strict=True):
                # An expert that no frame picked: zero here, no gradient there.
                theirs = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
                agree(ours, theirs)
    for name, weight in routers.items():
        theirs = torch.zeros_like(weight) if weight.grad is None else weight.grad
        agree(module.routers[name].weight.grad, theirs)


@pytest.mark.parametrize("num_experts", [1, 3, 8])
def test_fused_linear_in_float64_equals_the_sum_of_experts_to_1e_12(num_experts):
    torch.manual_seed(num_experts)
    linear = LoRAExpertLinear(nn.Linear(5, 7), num_experts, rank=3, alpha=1.5).double()
    nn.init.normal_(linear.lora_B)
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    gates = torch.rand(2, 4, num_experts, dtype=torch.float64)
    expected = linear.base(x)
    for k in range(num_experts):
        b = linear.lora_B[:, 3 * k : 3 * k + 3]
        expected = expected + 0.5 * gates[..., k, None] * (x @ linear.lora_A[k].T @ b.T)
    torch.testing.assert_close(linear(x, gates), expected, rtol=1e-12, atol=1e-12)
    ones = torch.ones_like(gates)
    torch.testing.assert_close(linear(x), linear(x, ones), rtol=0, atol=0)


def test_one_expert_keeps_its_raw_probability_and_its_router_learns():
    torch.manual_seed(0)
    router = Router(6, 4, top_k=1)
    gates, probs = router(torch.randn(2, 5, 6))
    assert torch.equal(gates.amax(-1), probs.amax(-1))
    assert torch.equal((gates > 0).sum(-1), torch.ones(2, 5, dtype=torch.long))
    assert gates.max() < 1
    gates.sum().backward()
    assert router.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("top_k", [2, 3])
def test_gates_of_the_top_k_sum_to_one_and_the_others_are_exactly_zero(top_k):
    torch.manual_seed(0)
    gates, probs = Router(6, 8, top_k)(torch.randn(20, 6))
    assert gates.dtype == probs.dtype == torch.float32
    torch.testing.assert_close(gates.sum(-1), torch.ones(20))
    assert torch.equal((gates != 0).sum(-1), torch.full((20,), top_k))
    torch.testing.assert_close(probs.sum(-1), torch.ones(20))
    kept = probs.where(gates > 0, torch.zeros(()))
    assert torch.equal(
        kept.sort(-1).values[:, -top_k:], probs.topk(top_k).values.flip(-1)
    )


def test_soft_routing_uses_every_expert_with_its_probability():
    gates, probs = Router(6, 4, top_k=None)(torch.randn(3, 6))
    assert torch.equal(gates, probs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_routed_in_float32_without_a_float32_copy(dtype):
    torch.manual_seed(11)
    router = Router(48, 4, 2)
    x = torch.randn(3, 7, 48).to(dtype).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t) or t, lambda t: t
    ):
        gates, probs = router(x)
    wide = [t for t in kept if t.numel() >= x.numel()]
    assert [t.data_ptr() for t in wide] == [x.data_ptr()]
    grads = torch.autograd.grad((gates * probs).sum(), (x, router.weight))

    y = x.detach().float().requires_grad_()
    wanted_gates, wanted_probs = router(y)
    assert torch.equal(gates, wanted_gates) and torch.equal(probs, wanted_probs)
    wanted = torch.autograd.grad(
        (wanted_gates * wanted_probs).sum(), (y, router.weight)
    )
    assert torch.equal(grads[0], wanted[0].to(dtype))
    torch.testing.assert_close(grads[1], wanted[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_routing_is_float32_under_autocast(dtype):
    torch.manual_seed(0)
    router = Router(16, 4)
    x = torch.randn(2, 5, 16).to(dtype)
    expected = router(x.float())
    with torch.autocast("cpu", dtype):
        found = router(x)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)
