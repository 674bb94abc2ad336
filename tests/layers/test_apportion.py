"""Experts are spread in proportion to weights, whole and exactly."""

from fractions import Fraction

import numpy as np
import pytest

from espnet2_lamer.layers.apportion import apportion


def plain(budget, weights, minimum):
    """Hamilton's method in exact arithmetic."""
    free = budget - minimum * len(weights)
    exact = [
        Fraction(free) * Fraction(w) / sum(map(Fraction, weights)) for w in weights
    ]
    counts = [minimum + int(share) for share in exact]
    rest = sorted(range(len(weights)), key=lambda i: (int(exact[i]) - exact[i], i))
    for i in rest[: budget - sum(counts)]:
        counts[i] += 1
    return counts


@pytest.mark.parametrize("seed", range(8))
def test_counts_are_those_of_exact_arithmetic(seed):
    rng = np.random.default_rng(seed)
    layers = int(rng.integers(1, 25))
    minimum = int(rng.integers(0, 3))
    budget = minimum * layers + int(rng.integers(0, 100))
    weights = [float(w) for w in rng.exponential(size=layers)]
    found = apportion(budget, weights, minimum)
    assert found == plain(budget, weights, minimum)
    assert sum(found) == budget
    assert min(found) >= minimum


def test_equal_weights_are_uniform_and_rests_go_to_shallow_layers():
    assert apportion(20, [1, 1, 1, 1], 2) == [5, 5, 5, 5]
    assert apportion(22, [3, 3, 3, 3], 2) == [6, 6, 5, 5]


def test_a_layer_of_no_weight_keeps_the_minimum():
    assert apportion(20, [0, 1, 2, 3], 2) == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("budget", "weights", "message"),
    [
        (7, [1, 1, 1, 1], "found 7 experts for 4 layers, expected at least 2 each"),
        (9, [0, 0], "not all 0"),
        (9, [1, -1], "0 or more"),
        (9, [1, float("nan")], "0 or more"),
    ],
)
def test_what_cannot_be_spread_is_refused(budget, weights, message):
    with pytest.raises(ValueError, match=message):
        apportion(budget, weights, 2)
