"""The ESPnet model: loss, balance, empty masks, checkpointing, autocast, options."""

import math

import pytest
import torch
from torch.nn import functional as F

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.hubert.espnet_model import index_mask
from espnet2_lamer.layers import load_balancing_loss, record_routing
from tests.tiny_hubert import MERGED

REAL = torch.arange(9) < torch.tensor([9, 6])[:, None]


def gradients(model, batch):
    model.zero_grad()
    loss, _, _ = model(**batch)
    loss.backward()
    return loss.detach(), {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def parts(model, batch):
    """Cross-entropy of the masked frames and the routing, taken apart by hand."""
    mask = index_mask(batch["mask_indices"], 9)
    with record_routing(model) as record:
        output = model.encoder(batch["speech"], batch["speech_lengths"], mask)
    assert torch.equal(output.real, REAL)
    assert output.logits.shape == (7, 6)
    return F.cross_entropy(output.logits, batch["text"][mask]), list(record)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_loss_is_mean_cross_entropy_plus_weighted_balance(
    build_model, batch, reduction
):
    conf = {"balance_weight": 0.3, "balance_reduction": reduction}
    lamer = {"allocation": "4,2", "rank": 2, "top_k": 1}
    model = build_model(lamer=lamer, model_conf=conf)
    cross_entropy, routing = parts(model, batch)
    balance = [load_balancing_loss(r.probs, r.gates, REAL) for r in routing]
    assert len(balance) == 2
    total = sum(balance) / (2 if reduction == "mean" else 1)
    loss, stats, weight = model(**batch)
    torch.testing.assert_close(loss, cross_entropy + 0.3 * total)
    torch.testing.assert_close(stats["loss_m"], cross_entropy)
    torch.testing.assert_close(stats["loss_m_bits"], cross_entropy / math.log(2))
    torch.testing.assert_close(stats["balance"], total)
    torch.testing.assert_close(stats["loss"], loss)
    assert weight.item() == 7


def test_layers_in_which_every_expert_is_used_are_left_out_of_the_balance(
    build_model, batch
):
    model = build_model(lamer={"allocation": "2,4", "rank": 2, "top_k": 2})
    _, routing = parts(model, batch)
    assert [r.probs.shape[-1] for r in routing] == [2, 4]
    expected = load_balancing_loss(routing[1].probs, routing[1].gates, REAL)
    torch.testing.assert_close(model(**batch)[1]["balance"], expected)
    for lamer in (
        {"allocation": 2, "rank": 2},
        {"allocation": 4, "rank": 2, "top_k": None},
        {"allocation": 4, "rank": 2, "balance": "none"},
        {"allocation": 1, "rank": 2},
        {"allocation": 0},
    ):
        loss, stats, _ = build_model(lamer=lamer)(**batch)
        assert "balance" not in stats
        torch.testing.assert_close(loss, stats["loss_m"])


@pytest.mark.parametrize("merge", ["none", "utterance"])
def test_importance_counts_every_router(build_model, batch, merge):
    lamer = {"allocation": "2,4", "rank": 2, "top_k": None, "balance": "importance"}
    lamer["merge"] = merge
    model = build_model(lamer=lamer)
    _, routing = parts(model, batch)
    # N sum_k m_k^2 of each router.
    means = [r.probs[REAL].mean(0) for r in routing]
    expected = sum(len(mean) * (mean**2).sum() for mean in means)
    torch.testing.assert_close(model(**batch)[1]["balance"], expected)


def test_accuracy_is_the_share_of_masked_frames_whose_best_unit_is_right(
    build_model, batch
):
    model = build_model()
    mask = index_mask(batch["mask_indices"], 9)
    logits = model.encoder(batch["speech"], batch["speech_lengths"], mask).logits
    batch["text"][mask] = logits.argmax(-1)
    batch["text"][0, 1] = (batch["text"][0, 1] + 1) % 6
    assert model(**batch)[1]["acc_m"].item() == pytest.approx(6 / 7)


def test_selection_bias_moves_in_training_only(build_model, batch):
    lamer = {"allocation": "2,4", "rank": 2, "balance": "bias"}
    model = build_model(lamer=lamer)
    layers = model.encoder.wav2vec2.encoder.transformer.layers
    router = layers[1].feed_forward.routers["ffn"]
    model.eval()
    for _ in range(2):
        model(**batch)
    assert router.selection_bias.abs().sum() == 0
    model.train()
    for _ in range(2):
        model(**batch)[0].backward()
    assert router.selection_bias.abs().max() > 0
    assert "balance" not in model(**batch)[1]


@pytest.mark.parametrize("balance", ["loss", "none"])
def test_without_masked_frames_the_loss_is_zero_and_reaches_everything_that_trains(
    build_model, other_base, batch, balance
):
    # A base without mask embedding: that trains too.
    model = build_model(
        other_base, {"allocation": "2,4", "rank": 2, "balance": balance}
    )
    batch["mask_indices"] = torch.full((2, 1), -1)
    loss, stats, weight = model(**batch)
    assert stats["loss_m"].item() == 0.0
    assert stats["acc_m"].isnan()  # ESPnet's reporter leaves it out of its means
    assert loss.item() == pytest.approx(0.001 * stats.get("balance", torch.zeros(())))
    assert weight.item() == 1
    loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad, name
    head = model.encoder.hubert_pretrain_model.logit_generator
    assert all(p.grad.abs().sum() == 0 for p in head.parameters())


@pytest.mark.parametrize(
    "lamer",
    [
        {"allocation": "2,4", "rank": 2},
        {"allocation": "2,4", "rank": 2, "balance": "bias"},
        MERGED,
        None,
    ],
)
def test_gradient_checkpointing_gives_the_same_loss_and_gradients(
    build_model, batch, lamer
):
    plain = build_model(lamer=lamer).train()
    recomputed = build_model(lamer=lamer, gradient_checkpointing=True).train()
    recomputed.load_state_dict(plain.state_dict())
    # Twice: with a selection bias the second batch is routed differently.
    for _ in range(2):
        loss, grads = gradients(plain, batch)
        other_loss, other_grads = gradients(recomputed, batch)
        assert torch.equal(loss, other_loss)
        for name, grad in grads.items():
            torch.testing.assert_close(other_grads[name], grad, msg=name)


def test_recomputation_routes_as_the_forward_pass_did(build_model, batch):
    """A tie that one step of the selection bias would decide otherwise."""
    lamer = {"allocation": "4", "rank": 2, "top_k": 1, "balance": "bias"}
    grads = []
    for recompute in (False, True):
        model = build_model(lamer=lamer, gradient_checkpointing=recompute).train()
        for layer in model.encoder.wav2vec2.encoder.transformer.layers:
            with torch.no_grad():
                layer.feed_forward.routers["ffn"].weight.mul_(1e-4)
        grads.append(gradients(model, batch)[1])
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


def test_what_stands_in_padding_changes_neither_loss_nor_gradients(build_model, batch):
    model = build_model()
    loss, grads = gradients(model, batch)
    batch["speech"][1, 2000:] = math.nan
    other_loss, other_grads = gradients(model, batch)
    assert torch.equal(loss, other_loss)
    for name, grad in grads.items():
        assert torch.equal(other_grads[name], grad), name


def test_unmasked_frames_count_where_they_are_asked_for(build_model, batch):
    model = build_model(model_conf={"unmasked_weight": 0.5, "balance_weight": 0.0})
    mask = index_mask(batch["mask_indices"], 9)
    output = model.encoder(batch["speech"], batch["speech_lengths"], mask, True)
    others = batch["text"][REAL & ~mask]
    assert len(others) == 8
    unmasked = F.cross_entropy(output.unmasked_logits, others)
    loss, stats, weight = model(**batch)
    torch.testing.assert_close(stats["loss_u"], unmasked)
    torch.testing.assert_close(loss, stats["loss_m"] + 0.5 * unmasked)
    right = output.unmasked_logits.argmax(-1) == others
    assert stats["acc_u"].item() == pytest.approx(right.float().mean().item())
    assert weight.item() == 7
    assert "loss_u" not in build_model()(**batch)[1]


def test_full_training_adds_the_feature_penalty(build_model, batch):
    model = build_model(lamer=None).train()
    loss, stats, _ = model(**batch)
    features, _ = model.encoder.wav2vec2.feature_extractor(
        batch["speech"], batch["speech_lengths"]
    )
    penalty = features[REAL].pow(2).mean()
    torch.testing.assert_close(stats["feature_penalty"], penalty)
    torch.testing.assert_close(loss, stats["loss_m"] + 10 * penalty)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert "feature_penalty" not in build_model()(**batch)[1]


def test_bf16_autocast_stays_near_fp32_and_returns_float32(build_model, batch):
    expected = build_model()(**batch)[0]
    model = build_model(model_conf={"amp_dtype": "bf16"})
    loss, stats, _ = model(**batch)
    assert loss.dtype == torch.float32 and stats["balance"].dtype == torch.float32
    assert loss.item() != expected.item()
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)
    loss.backward()
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all()


def test_the_temperature_of_the_config_reaches_the_head(build_model):
    model = build_model(model_conf={"logit_temp": 0.5})
    assert model.encoder.hubert_pretrain_model.logit_generator.logit_temp == 0.5


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        (
            {"balance_reduction": "max"},
            "balance_reduction: found 'max', expected one of",
        ),
        ({"amp_dtype": "int8"}, "amp_dtype: found 'int8', expected one of"),
    ],
)
def test_unknown_options_are_refused(build_model, conf, message):
    with pytest.raises(RecipeError, match=message):
        build_model(model_conf=conf)


@pytest.mark.parametrize(
    "tokens",
    [
        ["0", "1", "2", "3", "4", "<unk>", "<sos/eos>"],
        ["1", "0", "2", "3", "4", "5", "<unk>", "<sos/eos>"],
        ["0", "1", "2", "3", "4", "5"],
    ],
)
def test_a_token_list_that_is_not_the_units_in_order_is_refused(build_encoder, tokens):
    from espnet2_lamer.hubert.espnet_model import LamerHubertPretrainModel

    with pytest.raises(RecipeError, match=r"expected 0 .. 5 in order.*codebook"):
        LamerHubertPretrainModel(build_encoder(), tokens)
