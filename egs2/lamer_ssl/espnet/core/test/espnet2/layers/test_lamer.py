import pytest
import torch

from espnet2.asr.encoder.hubert_encoder import TorchAudioHuBERTPretrainEncoder
from espnet2.layers.lamer.balance import load_balancing_loss
from espnet2.layers.lamer.config import LamerConfig, parse_allocation
from espnet2.layers.lamer.experts import LoRAExpertLinear, Router
from espnet2.layers.lamer.feed_forward import add_lamer, record_routing


def make_hubert():
    encoder = TorchAudioHuBERTPretrainEncoder(
        input_size=1,
        extractor_conv_layer_config=[[4, 10, 5], [4, 3, 2]],
        encoder_embed_dim=8,
        encoder_pos_conv_kernel=4,
        encoder_pos_conv_groups=2,
        encoder_num_layers=2,
        encoder_num_heads=2,
        encoder_ff_interm_features=16,
    )
    return encoder.hubert_pretrain_model.wav2vec2.eval()


def test_allocation_groups_layers_from_shallow_to_deep():
    assert parse_allocation("2,4", 4) == [2, 2, 4, 4]
    assert parse_allocation(3, 2) == [3, 3]
    with pytest.raises(ValueError, match="equal groups"):
        parse_allocation("1,2,3", 4)
    with pytest.raises(ValueError, match="lamer.router: found 'x'"):
        LamerConfig(router="x")


@pytest.mark.parametrize("router", ["ffn", "projection"])
@pytest.mark.parametrize("top_k", [1, 2, None])
def test_experts_start_at_zero_and_the_base_is_frozen(router, top_k):
    model, x = make_hubert(), torch.randn(2, 200)
    before = model(x)[0]
    add_lamer(model, LamerConfig("2,4", rank=2, top_k=top_k, router=router))
    with record_routing(model) as record:
        after = model(x)[0]
    torch.testing.assert_close(after, before)
    assert len(record) == (2 if router == "ffn" else 4)
    trains = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trains and all("lora_" in name or "routers" in name for name in trains)


def test_an_expert_linear_is_the_gated_sum_of_its_experts():
    layer = LoRAExpertLinear(torch.nn.Linear(3, 5), num_experts=2, rank=2)
    torch.nn.init.normal_(layer.lora_B)
    x, gates = torch.randn(4, 3), torch.rand(4, 2)
    expected = layer.base(x)
    for k, (a, b) in enumerate(
        zip(layer.lora_A, layer.lora_B.split(2, 1), strict=True)
    ):
        expected = expected + gates[:, k : k + 1] * (x @ a.t() @ b.t())
    torch.testing.assert_close(layer(x, gates), expected)


def test_top_k_gates_sum_to_one_and_the_rest_is_zero():
    gates, probs = Router(4, num_experts=5, top_k=2)(torch.randn(3, 7, 4))
    torch.testing.assert_close(gates.sum(-1), torch.ones(3, 7))
    assert ((gates > 0).sum(-1) == 2).all()
    assert probs.shape == gates.shape


def test_a_balanced_router_has_loss_one():
    probs = torch.full((6, 3), 1 / 3)
    gates = torch.eye(3).repeat(2, 1)
    torch.testing.assert_close(load_balancing_loss(probs, gates), torch.tensor(1.0))
