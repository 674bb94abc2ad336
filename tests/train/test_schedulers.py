"""The polynomial schedule against its formula."""

import pytest
import torch

from espnet2_lamer.train.update import PolynomialDecayLR


def rates(updates, peak=2.0, **options):
    """Rate that each of the first ``updates`` updates is made with."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=peak)
    scheduler = PolynomialDecayLR(optimizer, **options)
    used = []
    for _ in range(updates):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return used


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_rates_at_the_ends_of_warm_up_and_decay_follow_the_formula(power):
    w, total, peak = 10, 100, 2.0
    used = rates(110, peak, warmup_steps=w, total_steps=total, power=power)

    def decayed(s):
        return peak * (1 - (s - 1 - w) / (total - w)) ** power

    # Update s is used[s - 1].
    assert used[0] == pytest.approx(peak / w)
    assert used[w - 1] == pytest.approx(peak)
    assert used[w] == pytest.approx(peak) == pytest.approx(decayed(w + 1))
    assert used[total // 2 - 1] == pytest.approx(decayed(total // 2))
    assert used[total - 1] == pytest.approx(decayed(total))
    assert used[total - 1] > 0
    assert used[total:] == [0.0] * 10


def test_rates_rise_then_fall_and_every_update_has_one():
    used = rates(50, warmup_steps=20, total_steps=50)
    assert used[:20] == sorted(used[:20])
    assert used[20:] == sorted(used[20:], reverse=True)
    assert min(used) > 0


def test_without_warm_up_the_first_update_has_the_peak_rate():
    assert rates(1, 2.0, warmup_steps=0, total_steps=5) == [2.0]


def test_a_resumed_schedule_goes_on_where_it_was():
    expected = rates(30, warmup_steps=5, total_steps=30)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    scheduler = PolynomialDecayLR(optimizer, warmup_steps=5, total_steps=30)
    for _ in range(12):
        optimizer.step()
        scheduler.step()
    states = optimizer.state_dict(), scheduler.state_dict()
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    scheduler = PolynomialDecayLR(optimizer, warmup_steps=5, total_steps=30)
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    for s in range(12, 30):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected[s])
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("warmup", "total"), [(10, 10), (20, 10), (-1, 10)])
def test_a_warm_up_that_does_not_end_is_refused(warmup, total):
    message = f"found warmup_steps {warmup} and total_steps {total}, expected 0 <="
    with pytest.raises(ValueError, match=message):
        rates(1, warmup_steps=warmup, total_steps=total)
