"""The balance terms: Eq. 7 with f that sums to 1, importance, selection bias."""

import pytest
import torch

from espnet2_lamer.layers import Router, load_balancing_loss
from espnet2_lamer.layers.balance import routing_sums


def random_routing(num_experts, top_k, frames=50, seed=0):
    torch.manual_seed(seed)
    return Router(8, num_experts, top_k)(torch.randn(2, frames, 8))


@pytest.mark.parametrize(("num_experts", "top_k"), [(2, 1), (4, 2), (8, 3), (5, None)])
def test_every_frame_counts_once_per_expert_and_only_m_carries_a_gradient(
    num_experts, top_k
):
    gates, probs = random_routing(num_experts, top_k)
    sums, counts = routing_sums(probs, gates)
    assert sums.sum().item() == pytest.approx(100.0, abs=1e-4)
    assert counts.sum().item() == 100 * (top_k or num_experts)
    assert sums.requires_grad and not counts.requires_grad


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_perfect_balance_gives_one_whatever_k_is(top_k):
    num_experts = 4
    # Frame t uses the experts t, t+1, ..: each is used equally often.
    probs = torch.full((num_experts, num_experts), 1 / num_experts)
    gates = torch.stack(
        [torch.eye(num_experts)[:top_k].sum(0).roll(t) for t in range(4)]
    )
    assert load_balancing_loss(probs, gates).item() == pytest.approx(1.0)


def test_full_collapse_gives_the_number_of_experts():
    probs = torch.eye(4)[[2] * 6]
    assert load_balancing_loss(probs, probs).item() == 4.0


def test_the_constant_cases_that_the_model_leaves_out_are_constant():
    for num_experts, top_k in ((2, 2), (5, None)):
        gates, probs = random_routing(num_experts, top_k)
        loss = load_balancing_loss(probs, gates)
        assert loss.item() == pytest.approx(1.0, abs=1e-6)
        (grad,) = torch.autograd.grad(loss, probs)
        # Equal for every expert of a frame: it vanishes behind the softmax.
        torch.testing.assert_close(grad, grad[..., :1].expand_as(grad))


def test_selection_bias_evens_out_the_load_and_leaves_the_gates_to_p():
    torch.manual_seed(0)
    router = Router(8, 4, top_k=1, use_selection_bias=True)
    with torch.no_grad():
        router.weight[0] += 0.5
    x = torch.randn(200, 8) + 0.5

    def load():
        gates, probs = router(x)
        _, counts = routing_sums(probs, gates)
        return counts / counts.sum(), gates, probs

    before, _, probs = load()
    assert before.max() > 0.5
    for _ in range(150):
        router.load, _, _ = load()
        router.update_selection_bias(rate=5e-3)
    after, gates, _ = load()
    assert after.max() < 0.35 and after.min() > 0.15
    # The weight of whichever expert is chosen is still its own probability.
    picked = gates.argmax(-1, keepdim=True)
    assert torch.equal(gates.gather(-1, picked), probs.gather(-1, picked))
    assert set(router.state_dict()) == {"weight", "selection_bias", "load"}


def test_without_selection_bias_there_is_nothing_to_store_or_update():
    router = Router(8, 4)
    router.update_selection_bias()
    assert set(router.state_dict()) == {"weight"}


def test_selection_bias_steps_by_its_rate_towards_the_idle_experts():
    router = Router(8, 4, use_selection_bias=True)
    router.update_selection_bias()
    assert router.selection_bias.tolist() == [0.0] * 4
    router.load.copy_(torch.tensor([0.5, 0.25, 0.25, 0.0]))
    router.update_selection_bias(rate=0.01)
    torch.testing.assert_close(
        router.selection_bias, torch.tensor([-0.01, 0.0, 0.0, 0.01])
    )
