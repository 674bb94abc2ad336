"""Growing experts: the old ones come first, and stay when they are frozen."""

import copy

import pytest
import torch
import yaml

from espnet2_lamer.errors import RecipeError

LAMER = {"rank": 2, "balance": "bias"}
FFN = (
    "encoder.hubert_pretrain_model.wav2vec2.encoder.transformer.layers.{}.feed_forward"
)


@pytest.fixture
def earlier(make_parts, tmp_path):
    """An experiment with 1 and 2 experts, all of random values."""
    from tests.train.small_training import CONFIG

    def make(**changes):
        lamer = {**LAMER, "allocation": "1,2", **changes}
        encoder = {**CONFIG["encoder_conf"], "lamer": lamer}
        model = make_parts(encoder_conf=encoder).model
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_()
        experiment = tmp_path / "earlier"
        experiment.mkdir(exist_ok=True)
        config = {
            "encoder": "lamer_hubert",
            "encoder_conf": encoder,
            "best_model_criterion": [["valid", "loss_m", "min"]],
        }
        (experiment / "config.yaml").write_text(yaml.safe_dump(config))
        torch.save(model.state_dict(), experiment / "valid.loss_m.best.pth")
        return experiment, model

    return make


@pytest.fixture
def grown(make_parts):
    from tests.train.small_training import CONFIG

    def make(experiment, allocation="3,4", old="frozen", **lamer):
        encoder = {
            **CONFIG["encoder_conf"],
            "lamer": {**LAMER, "allocation": allocation, **lamer},
        }
        return make_parts(
            encoder_conf=encoder,
            expand_from=str(experiment),
            old_experts=old,
            # Large, so that weight decay alone would show.
            optim_conf={"lr": 0.05, "weight_decay": 0.5},
        )

    return make


def update(parts, steps=3):
    for number, (_, batch) in enumerate(parts.train.build_iter(1)):
        if number == steps:
            return
        loss, _, _ = parts.model(**batch)
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()


def experts(model, layer, name="intermediate_dense"):
    module = getattr(
        model.encoder.wav2vec2.encoder.transformer.layers[layer].feed_forward, name
    )
    return module.lora_A.detach(), module.lora_B.detach()


def test_old_experts_and_router_rows_come_first_and_new_b_are_zero(earlier, grown):
    experiment, old = earlier()
    new = grown(experiment).model
    for layer, (before, now) in enumerate([(1, 3), (2, 4)]):
        for name in ("intermediate_dense", "output_dense"):
            a, b = experts(old, layer, name)
            new_a, new_b = experts(new, layer, name)
            assert new_a.shape[0] == now
            assert torch.equal(new_a[:before], a)
            assert torch.equal(new_b[:, : before * 2], b)
            assert not new_b[:, before * 2 :].any()
            assert new_a[before:].any()
    key = FFN.format(1) + ".routers.ffn.weight"
    assert torch.equal(new.state_dict()[key][:2], old.state_dict()[key])


def test_frozen_old_experts_stay_to_the_bit_while_new_ones_and_routers_train(
    earlier, grown
):
    experiment, old = earlier()
    parts = grown(experiment)
    start = copy.deepcopy(parts.model.state_dict())
    update(parts)
    for layer, before in enumerate([1, 2]):
        a, b = experts(old, layer)
        new_a, new_b = experts(parts.model, layer)
        assert torch.equal(new_a[:before], a)
        assert torch.equal(new_b[:, : before * 2], b)
        assert new_b[:, before * 2 :].any()
        router = FFN.format(layer) + ".routers.ffn.weight"
        assert not torch.equal(parts.model.state_dict()[router], start[router])


def test_shared_old_experts_train_too(earlier, grown):
    experiment, old = earlier()
    parts = grown(experiment, old="shared")
    update(parts)
    a, b = experts(old, 1)
    new_a, new_b = experts(parts.model, 1)
    assert not torch.equal(new_a[:2], a)
    assert not torch.equal(new_b[:, :4], b)


def test_without_new_experts_the_model_starts_where_the_earlier_one_stopped(
    earlier, grown
):
    experiment, old = earlier()
    new = grown(experiment, allocation="1,2").model
    wav, lengths = torch.randn(1, 4000), torch.tensor([4000])
    mask = torch.zeros(1, 12, dtype=torch.bool)
    with torch.no_grad():
        ours, theirs = (m.eval().encoder(wav, lengths, mask) for m in (new, old))
    torch.testing.assert_close(ours.hidden, theirs.hidden)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"allocation": "3,1"}, "has 2 experts in layer 2, found 1"),
        ({"rank": 3}, "lamer.rank 2, found 3"),
        ({"targets": ["ffn"]}, "lamer.targets"),
        ({"router": "projection"}, "lamer.router 'ffn', found 'projection'"),
    ],
)
def test_experts_that_do_not_fit_are_refused(earlier, grown, changes, message):
    experiment, _ = earlier()
    with pytest.raises(RecipeError, match=f"expand_from: .*{message}"):
        grown(experiment, **changes)


def test_an_experiment_without_experts_or_weights_is_refused(earlier, grown):
    experiment, _ = earlier()
    config = yaml.safe_load((experiment / "config.yaml").read_text())
    config["encoder_conf"]["lamer"] = None
    (experiment / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(RecipeError, match="expand_from: .* has no experts"):
        grown(experiment)
    (experiment / "valid.loss_m.best.pth").write_bytes(b"torn")
    with pytest.raises(RecipeError, match=r"expand_from: .*best\.pth: cannot be read"):
        grown(experiment)


def test_a_head_only_control_takes_nothing_over(earlier, grown):
    experiment, _ = earlier()
    assert grown(experiment, allocation=0).model.encoder.lamer.allocation == 0
