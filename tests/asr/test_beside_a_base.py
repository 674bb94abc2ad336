"""Options of the network beside a base: dropouts act, the rest is the base's."""

import argparse

import pytest
import torch
import yaml
from torch import nn

from espnet2_lamer import load_model
from espnet2_lamer.asr.encoder.lamer_hubert import LamerHubertEncoder
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.tasks.hubert import LamerHubertTask
from tests.export.tiny import TOKENS, UNITS, same, speech, states_of, write_base
from tests.export.tiny import write_experiment as write
from tests.tiny_hubert import ARCHITECTURE

DROPOUTS = [
    "encoder_projection_dropout",
    "encoder_attention_dropout",
    "encoder_ff_interm_dropout",
    "encoder_dropout",
    "encoder_layer_drop",
]
LAMER = {"allocation": "2,3", "rank": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("beside") / "base")


def hidden(encoder):
    wavs, lengths = speech()
    mask = torch.zeros(len(wavs), 9, dtype=torch.bool)
    mask[:, 0] = True
    return encoder(wavs, lengths, mask).hidden


@pytest.mark.parametrize("lamer", [LAMER, None], ids=["experts", "everything"])
@pytest.mark.parametrize("key", DROPOUTS)
def test_a_dropout_beside_a_base_acts_in_training_only(base, key, lamer):
    def build(**conf):
        torch.manual_seed(0)
        encoder = LamerHubertEncoder(5, base=str(base), lamer=lamer, **conf)
        return encoder

    plain, dropping = build(), build(**{key: 0.5})
    assert torch.equal(hidden(plain.train()), hidden(plain.eval()))
    assert torch.equal(hidden(dropping.eval()), hidden(plain))
    dropping.train()
    torch.manual_seed(1)
    assert any(not torch.equal(hidden(dropping), hidden(plain)) for _ in range(8))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_dropped_layer_leaves_its_input_and_every_router_its_gradient(
    base, checkpointing
):
    torch.manual_seed(0)
    conf = {"base": str(base), "lamer": LAMER, "final_dim": 8}
    conf |= {"encoder_layer_drop": 1.0, "gradient_checkpointing": checkpointing}
    args = {"encoder": "lamer_hubert", "encoder_conf": conf, "model": "lamer"}
    args |= {"model_conf": {}, "num_classes": UNITS, "token_list": TOKENS}
    model = LamerHubertTask.build_model(argparse.Namespace(**args)).train()
    wavs, lengths = speech()
    masked = torch.tensor([[0, 1]] * len(wavs))
    text = torch.zeros(len(wavs), 9, dtype=torch.long)
    loss, stats, _ = model(wavs, lengths, text, lengths, masked)
    loss.backward()
    assert stats["balance"] > 0
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    assert not any(p.grad.any() for n, p in trained.items() if "lora" in n)
    # Of two experts both are always used: only three can be out of balance.
    routers = [p.grad for n, p in trained.items() if "router" in n and len(p) == 3]
    assert routers and all(gradient.any() for gradient in routers)
    # What the transformer puts out is its input, normalised.
    mask = torch.zeros(len(wavs), 9, dtype=torch.bool)
    found = model.encoder(wavs, lengths, mask).hidden
    transformer = model.encoder.wav2vec2.encoder.transformer
    for layer in range(len(transformer.layers)):
        transformer.layers[layer] = nn.Identity()
    wav2vec2 = model.encoder.wav2vec2
    features, counts = wav2vec2.feature_extractor(wavs, lengths)
    x, _ = wav2vec2.encoder._preprocess(features, counts)
    expected = transformer.layer_norm(transformer._preprocess(x))
    for row, count in enumerate(counts.tolist()):
        torch.testing.assert_close(found[row, :count], expected[row, :count])


OTHERS = {
    "normalize_waveform": False,
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [[8, 10, 5]],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 32,
    "encoder_pos_conv_kernel": 4,
    "encoder_pos_conv_groups": 1,
    "encoder_num_layers": 7,
    "encoder_num_heads": 4,
    "encoder_ff_interm_features": 64,
    "encoder_layer_norm_first": False,
}


@pytest.mark.parametrize("key", OTHERS)
def test_what_the_base_decides_is_refused_where_it_differs(base, key):
    for value in (OTHERS[key], None):
        conf = {"base": str(base), "lamer": LAMER, key: value}
        if value is None:
            LamerHubertEncoder(5, **conf)
            continue
        message = f"encoder_conf.{key}: found .*, expected .*, as the base has"
        with pytest.raises(RecipeError, match=message):
            LamerHubertEncoder(5, **conf)


def test_equal_values_beside_a_base_may_stay(base):
    LamerHubertEncoder(5, base=str(base), lamer=LAMER, **ARCHITECTURE)


def test_an_experiment_of_earlier_with_such_a_key_still_loads(base, tmp_path):
    write(tmp_path / "exp", base)
    expected = states_of(load_model(tmp_path / "exp"))
    config = tmp_path / "exp" / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    settings["encoder_conf"] |= {"encoder_num_layers": 7, "encoder_dropout": 0.1}
    config.write_text(yaml.safe_dump(settings))
    assert same(states_of(load_model(tmp_path / "exp")), expected)
    from espnet2_lamer.bin.export import main

    adapter = tmp_path / "a.safetensors"
    main(["--kind=adapter", f"--experiment={tmp_path / 'exp'}", f"--output={adapter}"])
    assert same(states_of(load_model(adapter, base=base)), expected)
