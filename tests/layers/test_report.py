"""Parameter counts of HuBERT-Large, on the meta device, as exact integers."""

import copy

import pytest
import torch

from espnet2_lamer.convert.architecture import LARGE, build_hubert
from espnet2_lamer.layers import LamerConfig, add_lamer, parameter_report

DIM, FFN, LAYERS, RANK = 1024, 4096, 24, 12
EXPERTS = 120
EXPERT = (DIM + FFN) * RANK  # A and B on one projection
BOTH = ["intermediate_dense", "output_dense"]


def backbone_parameters():
    """HuBERT-Large, from the sizes of its parts; without mask embedding."""
    conv = sum(
        c_out * c_in * kernel + c_out + 2 * c_out  # weight, bias, LayerNorm
        for c_in, c_out, kernel in zip(
            [1] + [512] * 6, [512] * 7, [10, 3, 3, 3, 3, 2, 2], strict=True
        )
    )
    projection = 2 * 512 + 512 * DIM + DIM
    positional = DIM * (DIM // 16) * 128 + 128 + DIM  # direction, length, bias
    attention = 4 * (DIM * DIM + DIM)
    ffn = DIM * FFN + FFN + FFN * DIM + DIM
    layer = attention + ffn + 2 * (2 * DIM)
    return conv + projection + positional + LAYERS * layer + 2 * DIM


@pytest.fixture(scope="module")
def large():
    with torch.device("meta"):
        return build_hubert({})


def report(large, **options):
    model = copy.deepcopy(large)
    return parameter_report(add_lamer(model, LamerConfig(**options)))


def test_the_backbone_is_hubert_large_without_its_mask_embedding(large):
    # transformers counts 315,438,720: the same and a mask embedding of 1,024 values.
    assert backbone_parameters() == 315_438_720 - DIM
    found = parameter_report(large)
    assert found["total"] == found["backbone"] == found["trainable"]
    assert found["total"] == backbone_parameters()
    assert {found[key] for key in ("lora", "router", "head", "active")} == {0}
    assert len(LARGE["extractor_conv_layer_config"]) == 7


@pytest.mark.parametrize(
    ("targets", "router", "lora", "routers"),
    [
        # A1: experts on one projection. B1: on both.
        (BOTH[:1], "ffn", 7_372_800, 122_880),
        (BOTH[1:], "ffn", 7_372_800, 122_880),
        (BOTH, "ffn", 14_745_600, 122_880),
        (BOTH, "projection", 14_745_600, 614_400),
    ],
)
def test_the_2_4_6_8_allocation_counts_as_the_closed_form_says(
    large, targets, router, lora, routers
):
    found = report(large, targets=targets, router=router)
    assert found["lora"] == lora == EXPERTS * EXPERT * len(targets)
    assert found["router"] == routers
    assert found["trainable"] == lora + routers
    assert found["backbone"] == backbone_parameters()
    assert found["total"] == backbone_parameters() + lora + routers
    assert found["active"] == LAYERS * 2 * EXPERT * len(targets)
    assert found["head"] == 0


def test_sums_of_the_papers_possible_accounts(large):
    one, both = report(large, targets=BOTH[:1]), report(large)
    projection = report(large, router="projection")
    assert one["trainable"] == 7_495_680  # A2
    assert both["trainable"] == 14_868_480  # B2
    assert projection["trainable"] == 15_360_000  # B3
    assert both["active"] == 5_898_240  # D1
    assert both["active"] + both["router"] == 6_021_120  # D2


def test_experts_beside_the_whole_ffn_count_as_c1(large):
    found = report(large, targets=["ffn"])
    assert found["lora"] == EXPERTS * 2 * DIM * RANK == 2_949_120
    assert found["trainable"] == 3_072_000  # C1: with one router per FFN
    assert found["active"] == LAYERS * 2 * 2 * DIM * RANK


def test_percentages_are_of_the_denominator_in_their_name(large):
    found = report(large)
    backbone, total = found["backbone"], found["total"]
    assert found["trainable_percent_of_total"] == 100 * 14_868_480 / total
    assert found["trainable_percent_of_backbone"] == 100 * 14_868_480 / backbone
    assert found["lora_and_router_percent_of_backbone"] == 100 * 14_868_480 / backbone
    assert found["active_percent_of_backbone"] == 100 * 5_898_240 / backbone


def test_other_members_of_the_family(large):
    # HuBERT-LoRA: rank 24 is matched to the two active rank-12 experts (D1).
    lora = report(large, allocation=1, rank=24)
    assert lora["lora"] == lora["active"] == lora["trainable"] == 5_898_240
    assert lora["router"] == 0
    # Uniform: 5 per layer are the same 120 experts; soft routing uses all of them.
    uniform = report(large, allocation=5)
    assert (uniform["lora"], uniform["active"]) == (14_745_600, 5_898_240)
    soft = report(large, allocation=5, top_k=None)
    assert soft["active"] == soft["lora"] == 14_745_600
    control = report(large, allocation=0)
    assert control["trainable"] == control["lora"] == control["active"] == 0
