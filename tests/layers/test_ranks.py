"""A rank for each layer: the grammar, the shapes, and the counts."""

import pytest

from espnet2_lamer.layers import (
    LamerConfig,
    LamerFeedForward,
    add_lamer,
    parameter_report,
    parse_ranks,
)
from espnet2_lamer.layers.experts import LoRAExperts


@pytest.mark.parametrize(
    ("rank", "layers", "expected"),
    [
        (12, 3, [12, 12, 12]),
        ("4", 2, [4, 4]),
        ("2,8", 4, [2, 2, 8, 8]),
        ([1, 2, 3], 3, [1, 2, 3]),
    ],
)
def test_ranks_are_read_as_an_allocation_is(rank, layers, expected):
    assert parse_ranks(rank, layers) == expected


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        ("2,3,4", "rank '2,3,4' names 3 groups, but 4 layers"),
        ("2,0", "rank '2,0': expected ranks of 1 or more"),
        ("two", "rank 'two': expected integers"),
    ],
)
def test_ranks_that_do_not_fit_say_why(rank, message):
    with pytest.raises(ValueError, match=message):
        parse_ranks(rank, 4)


@pytest.mark.parametrize("rank", ["2,0", "two", [], [4, -1], 0])
def test_an_impossible_rank_is_refused_before_there_are_layers(rank):
    with pytest.raises(ValueError, match=r"lamer.rank: found .*, expected 1 or more"):
        LamerConfig(rank=rank)


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_each_layer_has_its_rank_its_scale_and_its_share_of_the_count(
    tiny_hubert, alpha
):
    config = LamerConfig(allocation="3,2", rank="4,1", alpha=alpha, top_k=2)
    model = add_lamer(tiny_hubert(), config)
    lora = active = 0
    layers = model.encoder.transformer.layers
    for layer, (count, rank) in zip(layers, ((3, 4), (2, 1)), strict=True):
        ffn = layer.feed_forward
        assert isinstance(ffn, LamerFeedForward)
        for linear in (ffn.intermediate_dense, ffn.output_dense):
            assert isinstance(linear, LoRAExperts)
            assert linear.lora_A.shape[:2] == (count, rank)
            assert linear.scale == (1.0 if alpha is None else alpha / rank)
        # Both Linears have d_in + d_out values for each component.
        lora += 2 * (16 + 32) * count * rank
        active += 2 * (16 + 32) * min(2, count) * rank
    report = parameter_report(model)
    assert (report["lora"], report["active"]) == (lora, active)
    assert report["router"] == 16 * (3 + 2)
