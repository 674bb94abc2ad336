"""Allocations and options: what they mean and what is refused, with the reason."""

import pytest
from torch import nn

from espnet2_lamer.layers import (
    LamerConfig,
    LoRAExpertLinear,
    Router,
    parse_allocation,
)


@pytest.mark.parametrize(
    ("allocation", "num_layers", "expected"),
    [
        # Lamer-SSL, Table 3: five schemes of 120 experts in 24 layers.
        ("2,4,6,8", 24, [2] * 6 + [4] * 6 + [6] * 6 + [8] * 6),
        ("8,6,4,2", 24, [8] * 6 + [6] * 6 + [4] * 6 + [2] * 6),
        ("2,8,8,2", 24, [2] * 6 + [8] * 12 + [2] * 6),
        ("8,2,2,8", 24, [8] * 6 + [2] * 12 + [8] * 6),
        ("2,2,8,8", 24, [2] * 12 + [8] * 12),
        ("5", 24, [5] * 24),
        (5, 3, [5, 5, 5]),
        ("0", 2, [0, 0]),
        ("1, 2 ,3", 3, [1, 2, 3]),
        ([0, 4], 4, [0, 0, 4, 4]),
        ((3,), 2, [3, 3]),
    ],
)
def test_allocation_gives_one_count_per_layer(allocation, num_layers, expected):
    assert parse_allocation(allocation, num_layers) == expected


def test_the_papers_five_schemes_have_the_same_120_experts():
    for scheme in ("2,4,6,8", "8,6,4,2", "2,8,8,2", "8,2,2,8", "2,2,8,8", "5"):
        assert sum(parse_allocation(scheme, 24)) == 120


@pytest.mark.parametrize(
    ("allocation", "num_layers", "message"),
    [
        ("2,4,6", 4, "'2,4,6' names 3 groups, but 4 layers .* divisor of 4"),
        ("2,4,6,8", 2, "names 4 groups, but 2 layers"),
        ("two", 4, "'two': expected integers separated by commas"),
        ("", 4, "expected integers"),
        ("2;4", 4, "'2;4': expected integers"),
        ("2.5", 4, "'2.5': expected integers"),
        ("2,-1", 4, "'2,-1': expected expert counts of 0 or more"),
        (-1, 4, "-1: expected expert counts of 0 or more"),
        ([], 4, "0 or more"),
        ([2.5, 4], 4, r"\[2.5, 4\]: expected integers"),
        (2.5, 4, "2.5: expected integers"),
        (None, 4, "None: expected integers"),
    ],
)
def test_an_allocation_that_does_not_fit_says_why(allocation, num_layers, message):
    with pytest.raises(ValueError, match=message):
        parse_allocation(allocation, num_layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "lamer.rank: found 0, expected 1 or more"),
        ({"top_k": 0}, "lamer.top_k: found 0, expected 1 or more"),
        ({"router": "token"}, r"lamer.router: found 'token', expected .*'projection'"),
        ({"balance": "aux"}, r"lamer.balance: found 'aux', expected one of .*'bias'"),
        ({"targets": ["fc1"]}, r"lamer.targets: found \['fc1'\], .*'output_dense'"),
        ({"targets": []}, r"lamer.targets: found \[\], expected a non-empty subset"),
        ({"dropout": 1.0}, "lamer.dropout: found 1.0"),
        ({"dropout": -0.1}, "lamer.dropout: found -0.1"),
    ],
)
def test_an_impossible_option_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        LamerConfig(**options)


def test_the_defaults_are_the_papers():
    config = LamerConfig()
    assert (config.allocation, config.rank, config.top_k) == ("2,4,6,8", 12, 2)
    assert config.targets == ("intermediate_dense", "output_dense")
    assert LoRAExpertLinear(nn.Linear(2, 2), 1, config.rank, config.alpha).scale == 1.0


def test_layers_refuse_impossible_sizes():
    with pytest.raises(ValueError, match="at least 2 experts to choose from, found 1"):
        Router(8, 1)
    with pytest.raises(ValueError, match="top_k: found 0"):
        Router(8, 4, top_k=0)
    with pytest.raises(ValueError, match="top_k: found 3, expected at most 2"):
        Router(8, 2, top_k=3)
    for sizes in ((0, 2), (2, 0)):
        with pytest.raises(ValueError, match=f"found {sizes[0]} and {sizes[1]}"):
            LoRAExpertLinear(nn.Linear(2, 2), *sizes)
