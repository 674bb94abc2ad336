"""Importance of components against full matrices, and where the answer is known."""

import math

import pytest
import torch
from torch import nn
from torchaudio.models.wav2vec2.components import FeedForward

from espnet2_lamer.layers import LamerConfig, LamerFeedForward
from espnet2_lamer.layers.apportion import apportion, apportion_ranks
from espnet2_lamer.layers.experts import LoRAExpertLinear, LoRAExperts
from espnet2_lamer.layers.importance import (
    ComponentImportance,
    effective_rank,
    experts_by_layer,
)


@pytest.mark.parametrize("sizes", [(7, 5, 3, 2), (4, 9, 1, 4), (6, 3, 2, 5)])
def test_it_is_the_singular_value_times_its_gradient_averaged_over_batches(sizes):
    d_in, d_out, count, rank = sizes
    torch.manual_seed(rank)
    experts = LoRAExperts(d_in, d_out, count, rank, alpha=3.0).double()
    nn.init.normal_(experts.lora_B)
    importance = ComponentImportance(experts)
    expected = torch.zeros_like(importance.sums)
    for _ in range(3):
        x, wanted = torch.randn(8, d_in).double(), torch.randn(8, d_out).double()
        gates = torch.rand(8, count).double()
        (experts(x, gates) - wanted).square().sum().backward()
        importance.add()
        experts.zero_grad()

        # The same loss of whole matrices, one an expert.
        blocks = experts.lora_B.detach().unflatten(1, (count, rank)).unbind(1)
        whole = [
            (b @ a).requires_grad_()
            for b, a in zip(blocks, experts.lora_A.detach(), strict=True)
        ]
        y = sum(
            experts.scale * gates[:, k, None] * (x @ w.T) for k, w in enumerate(whole)
        )
        (y - wanted).square().sum().backward()
        for k, matrix in enumerate(whole):
            u, s, v = torch.linalg.svd(matrix.detach(), full_matrices=False)
            for i in range(expected.shape[1]):
                slope = u[:, i] @ matrix.grad @ v[i]
                expected[k, i] += float((s[i] * slope).abs()) / 3
    assert importance.values.shape == (count, min(rank, d_in, d_out))
    torch.testing.assert_close(importance.values, expected, rtol=1e-4, atol=1e-4)


def test_it_does_not_depend_on_how_a_matrix_is_cut_into_a_and_b():
    torch.manual_seed(0)
    one, other = LoRAExperts(6, 5, 1, 3), LoRAExperts(6, 5, 1, 3)
    mixer = torch.randn(3, 3) + 2 * torch.eye(3)
    with torch.no_grad():
        one.lora_B.normal_()
        other.lora_A.copy_(torch.linalg.inv(mixer) @ one.lora_A)
        other.lora_B.copy_(one.lora_B @ mixer)
    x, wanted = torch.randn(4, 6), torch.randn(4, 5)
    found = []
    for experts in (one, other):
        importance = ComponentImportance(experts)
        (experts(x) - wanted).square().sum().backward()
        importance.add()
        found.append(importance.values)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)


def test_the_effective_rank_is_the_number_of_equal_components():
    for count in (1, 3, 6):
        values = torch.zeros(2, 6)
        values[:, :count] = 0.7
        assert effective_rank(values) == pytest.approx(count)
    # Experts count by their importance: one component of 3, four of 1 in all.
    values = torch.tensor([[3.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    assert effective_rank(values) == pytest.approx((3 * 1 + 1 * 4) / 4)
    p = [0.5, 0.25, 0.25]
    expected = math.exp(-sum(x * math.log(x) for x in p))
    assert effective_rank(torch.tensor([p])) == pytest.approx(expected)
    assert effective_rank(torch.zeros(3, 4)) == 1.0


@pytest.mark.parametrize("seed", range(20))
def test_ranks_spend_the_budget_and_never_more(seed):
    generator = torch.Generator().manual_seed(seed)
    layers = int(torch.randint(1, 9, (), generator=generator))
    counts = torch.randint(0, 9, (layers,), generator=generator).tolist()
    counts[0] += 1
    weights = (torch.rand(layers, generator=generator) + 0.1).tolist()
    budget = sum(counts) + int(torch.randint(0, 300, (), generator=generator))
    ranks = apportion_ranks(budget, weights, counts)
    spent = sum(n * r for n, r in zip(counts, ranks, strict=True))
    assert budget - min(n for n in counts if n) < spent <= budget
    assert min(ranks) == 1 if 0 in counts else min(ranks) >= 1
    more = apportion_ranks(budget + 50, weights, counts)
    assert sum(more) >= sum(ranks)


def test_ranks_follow_the_weights():
    assert apportion_ranks(40, [3.0, 1.0], [1, 1]) == [30, 10]
    assert apportion_ranks(24, [1.0, 1.0], [2, 4]) == [4, 4]
    with pytest.raises(ValueError, match="found 5 components for 6 experts"):
        apportion_ranks(5, [1.0, 1.0], [2, 4])


def test_all_free_experts_go_to_the_only_layer_that_can_reduce_the_loss():
    torch.manual_seed(0)
    config = LamerConfig(rank=4, top_k=2)
    layers = [
        LamerFeedForward(FeedForward(8, 12, 0.0, 0.0), 4, config, layer=n)
        for n in range(3)
    ]
    model = nn.ModuleList(layers)
    change = 0.5 * torch.randn(8, 8)

    def loss():
        total = 0.0
        for number, layer in enumerate(layers):
            x = torch.randn(32, 8)
            with torch.no_grad():
                wanted = layer(x)
                if number == 1:
                    linears = layer.intermediate_dense.base, layer.output_dense.base
                    wanted = linears[1](nn.functional.gelu(linears[0](x)))
                    wanted = wanted + x @ change.T
            total = total + (layer(x) - wanted).square().mean()
        return total

    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    for _ in range(50):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    found = [
        [ComponentImportance(part) for part in targets.values()]
        for _, targets in experts_by_layer(model)
    ]
    for _ in range(5):
        model.zero_grad()
        loss().backward()
        for parts in found:
            for part in parts:
                part.add()
    scores = [sum(float(part.values.sum()) for part in parts) for parts in found]
    assert scores[1] > 0 and scores[0] == scores[2] == 0
    assert apportion(12, scores, minimum=2) == [2, 8, 2]


@pytest.mark.parametrize("needed", [1, 5])
def test_the_effective_rank_is_near_that_of_the_change_that_is_needed(needed):
    torch.manual_seed(0)
    linear = LoRAExpertLinear(nn.Linear(12, 12), 1, 8)
    q = torch.linalg.qr(torch.randn(12, 12))[0]
    change = q[:, :needed] @ q.flip(1)[:, :needed].T

    def loss():
        x = torch.randn(64, 12)
        # Noise keeps gradients alive where the change has been learnt.
        wanted = linear.base(x) + x @ change.T + 0.3 * torch.randn(64, 12)
        return (linear(x) - wanted).square().mean()

    parameters = [linear.lora_A, linear.lora_B]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    importance = ComponentImportance(linear)
    for _ in range(50):
        optimizer.zero_grad()
        loss().backward()
        importance.add()
    assert effective_rank(importance.values) == pytest.approx(needed, rel=0.25)
