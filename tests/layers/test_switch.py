"""Experts switched off: the base to the bit, and back again."""

import pytest
import torch

from espnet2_lamer.layers import LamerConfig, add_lamer, experts_off


@pytest.mark.parametrize(
    "config",
    [
        {"allocation": "2,4"},
        {"allocation": "0,1", "targets": ("output_dense",)},
        {"allocation": 3, "router": "projection", "balance": "bias"},
        {"allocation": 2, "targets": ("ffn",)},
    ],
    ids=str,
)
def test_the_base_comes_out_to_the_bit_and_the_experts_come_back(
    tiny_hubert, fill_experts, config
):
    speech = torch.randn(2, 4000, generator=torch.Generator().manual_seed(1))
    expected, _ = tiny_hubert()(speech)
    model = fill_experts(add_lamer(tiny_hubert(), LamerConfig(rank=2, **config)))
    with torch.no_grad():
        adapted, _ = model(speech)
        names = [name for name, _ in model.named_modules()]
        state = {key: value.clone() for key, value in model.state_dict().items()}
        with experts_off(model):
            assert torch.equal(model(speech)[0], expected)
        assert not torch.equal(adapted, expected)
        assert torch.equal(model(speech)[0], adapted)
    assert [name for name, _ in model.named_modules()] == names
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_the_experts_come_back_after_an_error(tiny_hubert):
    model = add_lamer(tiny_hubert(), LamerConfig("2,4", rank=2))
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(KeyError), experts_off(model):
        raise KeyError
    assert [name for name, _ in model.named_modules()] == names
