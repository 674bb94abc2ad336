"""Growth of norms: powers are found, held-out misses told, no more is claimed."""

import math

import numpy as np
import pytest

from espnet2_lamer.metrics.growth import add_up_rates, fit_growth


@pytest.mark.parametrize(("factor", "power"), [(0.02, 2.0), (3.0, 1.0), (0.5, 0.4)])
def test_a_power_is_found_and_continued(factor, power):
    x = np.linspace(0.1, 20.0, 60)
    found = fit_growth(x, factor * x**power)
    assert found.factor == pytest.approx(factor)
    assert found.power == pytest.approx(power)
    assert found.miss == pytest.approx(0.0, abs=1e-9)
    assert found.at(300.0) == pytest.approx(factor * 300.0**power)


def test_the_miss_is_that_of_a_fit_to_the_first_half_on_the_second():
    x = np.linspace(1.0, 16.0, 40)
    # The power is 1 up to half of the rate sum, and 2 behind it.
    y = np.where(x <= 8.0, x, x**2 / 8.0)
    found = fit_growth(x, y)
    assert found.miss == pytest.approx(math.log(2.0))
    low, high = found.interval(16.0)
    assert high / found.at(16.0) == pytest.approx(2.0)
    assert found.at(16.0) / low == pytest.approx(2.0)
    # Four times as far ahead as the second half reached: the miss to the fourth power.
    low, high = found.interval(16.0 * 2**4)
    assert math.sqrt(high / low) == pytest.approx(2.0**4)


def test_the_interval_is_at_least_the_miss_and_holds_what_was_held_out():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x = np.sort(rng.uniform(0.5, 10.0, 80))
        y = 0.3 * x ** rng.uniform(0.5, 2) * np.exp(rng.normal(0, 0.1, 80))
        found = fit_growth(x, y)
        low, high = found.interval(x[-1])
        assert high / low == pytest.approx(math.exp(2 * found.miss))
        assert found.miss > 0


@pytest.mark.parametrize("count", [0, 1, 5, 7])
def test_too_few_points_predict_nothing(count):
    x = np.arange(1.0, count + 1)
    assert fit_growth(x, x) is None


def test_points_at_zero_and_the_beginning_are_left_out():
    x = np.linspace(0.0, 16.0, 65)
    y = 2.0 * x**1.5
    y[x < 1.0] = 100.0
    y[0] = 0.0
    found = fit_growth(x, y)
    assert (found.factor, found.power) == pytest.approx((2.0, 1.5))


def test_rates_add_up_along_warm_up_and_decay():
    peak, warm, total = 0.0015, 1000, 10000
    exact = [
        peak * (s / warm if s <= warm else 1 - (s - 1 - warm) / (total - warm))
        for s in range(1, total + 1)
    ]
    updates = list(range(500, total + 1, 500))
    found = add_up_rates(updates, [exact[u - 1] for u in updates])
    expected = [sum(exact[:u]) for u in updates]
    assert found == pytest.approx(expected, rel=2e-3)
