"""A frozen upstream that drops in training what it dropped in its own."""

import json

import pytest
import torch

from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.tasks.upstream_frontend import LamerUpstreamFrontend
from espnet2_lamer.upstream import load_model
from tests.tiny_hubert import ARCHITECTURE

DROPOUTS = {
    "feat_proj_dropout": 0.4,
    "attention_dropout": 0.2,
    "activation_dropout": 0.1,
    "hidden_dropout": 0.3,
}


@pytest.fixture(params=["base", "large"])
def directory(request, tmp_path):
    """A directory as transformers writes it, of mHuBERT-147's or Large's kind."""
    from transformers import HubertConfig, HubertModel

    large = request.param == "large"
    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer" if large else "group",
        conv_bias=large,
        do_stable_layer_norm=large,
        # S3PRL switches the first off; neither is this package's.
        layerdrop=0.0,
        apply_spec_augment=False,
        **DROPOUTS,
    )
    HubertModel(config).save_pretrained(tmp_path)
    prepared = {"do_normalize": True, "sampling_rate": 16000}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(prepared))
    return tmp_path


@pytest.fixture
def wavs():
    return torch.randn(1, 12000, generator=torch.Generator().manual_seed(1))


def test_train_mode_drops_what_transformers_drops_in_train_mode(directory, wavs):
    from transformers import HubertModel

    reference = HubertModel.from_pretrained(directory).train()
    normalised = (wavs - wavs.mean()) / (wavs.var(unbiased=False) + 1e-5).sqrt()
    torch.manual_seed(5)
    expected = reference(normalised, output_hidden_states=True).hidden_states
    upstream = load_model(directory)
    assert upstream.drop_in_training()
    upstream.train()
    torch.manual_seed(5)
    found, _ = upstream.extract_features(wavs)
    # The last state of a pre-norm stack: transformers 5 leaves its norm out.
    for ours, theirs in list(zip(found, expected, strict=True))[:-1]:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_default_stays_in_eval_mode(directory, wavs):
    upstream = load_model(directory)
    plain = upstream.extract_features(wavs)[0]
    upstream.train()
    assert not any(module.training for module in upstream.modules())
    found = upstream.extract_features(wavs)[0]
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_the_frontend_drops_while_a_head_trains_and_never_else(directory, wavs):
    lengths = torch.tensor([wavs.shape[1]])
    plain = LamerUpstreamFrontend(directory, layer=2).eval()(wavs, lengths)[0]
    frontend = LamerUpstreamFrontend(directory, layer=2, upstream_mode="train")
    one, two = (frontend.train()(wavs, lengths)[0] for _ in range(2))
    assert not torch.allclose(one, two) and not one.requires_grad
    assert torch.equal(frontend.eval()(wavs, lengths)[0], plain)


def test_its_weights_and_name_are_those_of_eval_mode(directory):
    upstream, other = load_model(directory), load_model(directory)
    other.drop_in_training()
    assert upstream.architecture() == other.architecture()


def test_a_model_of_this_package_drops_what_it_was_trained_with():
    assert not Upstream.from_architecture(
        {"hubert": ARCHITECTURE, "lamer": None, "final_norm": True}
    ).drop_in_training()
    for changes, lamer in (
        ({"encoder_attention_dropout": 0.1}, None),
        ({}, {"allocation": "2", "rank": 2, "dropout": 0.1}),
    ):
        conf = {"hubert": ARCHITECTURE | changes, "lamer": lamer, "final_norm": True}
        assert Upstream.from_architecture(conf).drop_in_training()


@pytest.mark.parametrize("tune", ["experts", "all"])
def test_an_upstream_that_is_tuned_stays_in_eval_mode(tune):
    conf = {"hubert": ARCHITECTURE, "lamer": None, "final_norm": True}
    with pytest.raises(
        RecipeError, match="upstream_mode: found 'train', expected eval"
    ):
        LamerUpstreamFrontend(upstream_conf=conf, tune=tune, upstream_mode="train")
