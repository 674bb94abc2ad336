import pytest
import torch

from espnet2.hubert.lamer_espnet_model import LamerHubertPretrainModel
from espnet2.layers.lamer.experts import Router
from espnet2.tasks.hubert import encoder_choices, model_choices


def make_model(lamer, **options):
    encoder = encoder_choices.get_class("lamer_hubert")(
        input_size=1,
        lamer=lamer,
        extractor_conv_layer_config=[[4, 10, 5], [4, 3, 2]],
        encoder_embed_dim=8,
        encoder_pos_conv_kernel=4,
        encoder_pos_conv_groups=2,
        encoder_num_layers=2,
        encoder_num_heads=2,
        encoder_ff_interm_features=16,
        encoder_layer_drop=0.0,
        num_classes=5,
        final_dim=4,
    )
    return model_choices.get_class("lamer")(
        vocab_size=5,
        token_list=["0", "1", "2", "3", "4"],
        frontend=None,
        specaug=None,
        normalize=None,
        preencoder=None,
        encoder=encoder,
        **options,
    )


def make_batch():
    frames = 39
    return dict(
        speech=torch.randn(2, 400),
        speech_lengths=torch.tensor([400, 300]),
        text=torch.randint(0, 5, (2, frames)),
        text_lengths=torch.tensor([frames, frames]),
    )


@pytest.mark.parametrize("balance", ["loss", "bias", "importance", "none"])
def test_forward_backward(balance):
    lamer = {"allocation": "3,4", "rank": 2, "balance": balance}
    model, batch = make_model(lamer), make_batch()
    assert isinstance(model, LamerHubertPretrainModel)
    for _ in range(2):
        loss, stats, _ = model(**batch)
    loss.sum().backward()
    assert ("balance" in stats) == (balance in ("loss", "importance"))
    biases = [m.selection_bias for m in model.modules() if isinstance(m, Router)]
    moved = [b is not None and bool(b.abs().sum() > 0) for b in biases]
    assert len(moved) == 2 and all(moved) == (balance == "bias")


@pytest.mark.parametrize("reduction, routers", [("sum", 2), ("mean", 1)])
def test_loss_has_the_balance_term(reduction, routers):
    lamer = {"allocation": 4, "rank": 2}
    model = make_model(lamer, balance_weight=2.0, balance_reduction=reduction).eval()
    batch = make_batch()
    torch.manual_seed(0)
    loss, stats, _ = model(**batch)
    model.balance_weight = 0.0
    torch.manual_seed(0)
    without, *_ = model(**batch)
    torch.testing.assert_close(
        loss - without, 2.0 * stats["balance"] * stats["count_m"], rtol=1e-4, atol=1e-3
    )
    # Routers that know nothing yet are near balance, which is 1.
    assert 0.9 * routers < float(stats["balance"]) < 2.0 * routers


def test_without_routers_the_loss_is_the_parents():
    _, stats, _ = make_model({"allocation": 1, "rank": 2})(**make_batch())
    assert "balance" not in stats
    with pytest.raises(ValueError, match="balance_reduction"):
        make_model(None, balance_reduction="max")
