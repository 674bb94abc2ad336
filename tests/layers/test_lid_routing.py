"""LoRA that the language routes, against the formula written plainly."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers import LamerConfig, add_lamer
from espnet2_lamer.layers.lid_routing import (
    LanguageIdentifier,
    LidRoutingConfig,
    record_languages,
)
from tests.tiny_hubert import ARCHITECTURE

LANGS = ["cmn", "eng", "yue"]


def make(mode="layer_norm", blocks=4, seed=0, **options):
    """A tiny upstream with LoRA that is not zero, and the same without."""
    torch.manual_seed(seed)
    sizes = {**ARCHITECTURE, "encoder_num_layers": blocks, "extractor_mode": mode}
    plain = Upstream(build_hubert(sizes))
    upstream = copy.deepcopy(plain)
    upstream.route_by_language({"languages": LANGS, "layers": blocks, **options})
    for name, weight in upstream.named_parameters():
        if "lora_B" in name or "language_identifier" in name:
            nn.init.normal_(weight, std=0.3)
    return plain, upstream


def batch(*samples, seed=1):
    torch.manual_seed(seed)
    wavs = torch.zeros(len(samples), max(samples))
    for row, count in zip(wavs, samples, strict=True):
        row[:count] = torch.randn(count)
    return wavs, torch.tensor(samples)


def by_hand(plain, upstream, wav):
    """Every state and the posterior of one utterance, matrix by matrix."""
    weights = dict(upstream.wav2vec2.named_parameters())
    config, model = upstream.lid_routed, plain.wav2vec2
    shared, rank = config["shared_layers"], config["rank"]
    features, _ = model.feature_extractor(wav[None], None)
    x, _ = model.encoder._preprocess(features, None)
    transformer = model.encoder.transformer
    x = transformer._preprocess(x)
    states, p = [x[0]], None
    for index, block in enumerate(transformer.layers):
        if index == shared:
            name = "language_identifier.linear"
            p = weights[f"{name}.weight"] @ x[0].mean(0) + weights[f"{name}.bias"]
            p = p.softmax(0)

        def linear(name, module, h, index=index, p=p):
            y = module(h)
            where = f"encoder.transformer.layers.{index}.feed_forward.{name}"
            if index >= config["layers"] or f"{where}.lora_A" not in weights:
                return y
            a, b = weights[f"{where}.lora_A"], weights[f"{where}.lora_B"]
            scale = (config["alpha"] or rank) / rank
            for expert in range(len(a)):
                part = slice(expert * rank, (expert + 1) * rank)
                gate = 1.0 if index < shared else p[expert]
                y = y + scale * gate * (h @ a[expert].T) @ b[:, part].T
            return y

        # torchaudio's block with the feed-forward network written out.
        residual, first = x, block.layer_norm_first
        h = block.layer_norm(x) if first else x
        h, _ = block.attention(h)
        x = residual + h

        def feed_forward(h, block=block, linear=linear):
            ffn = block.feed_forward
            h = linear("intermediate_dense", ffn.intermediate_dense, h)
            h = nn.functional.gelu(h)
            return linear("output_dense", ffn.output_dense, h)

        if first:
            x = x + feed_forward(block.final_layer_norm(x))
        else:
            x = block.layer_norm(x)
            x = block.final_layer_norm(x + feed_forward(x))
        states.append(x[0])
    if not transformer.layer_norm_first:
        # torchaudio's name is the negation: pre-norm, normalised at the end.
        states[-1] = transformer.layer_norm(states[-1])
    return states, p


@pytest.mark.parametrize("mode", ["layer_norm", "group_norm"])
@pytest.mark.parametrize(
    "options",
    [
        {"shared_layers": 1, "rank": 3},
        {"shared_layers": 0, "rank": 2, "alpha": 5.0},
        {"shared_layers": 3, "rank": 1, "targets": ["output_dense"]},
        {"shared_layers": 2, "rank": 4, "layers": 3},
    ],
)
def test_states_are_those_of_the_formula_whatever_the_padding(mode, options):
    plain, upstream = make(mode, **options)
    wavs, lengths = batch(6000, 3300, 9100)
    with record_languages(upstream) as heard:
        states, frames = upstream.extract_features(wavs, lengths)
    posteriors = torch.cat(heard).softmax(-1)
    assert posteriors.shape == (3, len(LANGS))
    with torch.no_grad():
        for row, (wav, count) in enumerate(zip(wavs, lengths, strict=True)):
            expected, p = by_hand(plain, upstream, wav[:count])
            torch.testing.assert_close(posteriors[row], p, rtol=1e-4, atol=1e-5)
            for found, right in zip(states, expected, strict=True):
                found = found[row, : int(frames[row])]
                torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-4)


def test_before_the_first_update_every_state_is_the_models_to_the_bit():
    torch.manual_seed(0)
    plain = Upstream(build_hubert({**ARCHITECTURE, "extractor_mode": "layer_norm"}))
    upstream = copy.deepcopy(plain)
    upstream.route_by_language({"languages": LANGS, "layers": 2, "shared_layers": 1})
    wavs, lengths = batch(4000, 2500)
    before, after = (m.extract_features(wavs, lengths)[0] for m in (plain, upstream))
    assert all(map(torch.equal, before, after))


def test_the_identifier_hears_real_frames_alone():
    torch.manual_seed(0)
    identifier = LanguageIdentifier(8, 3)
    x, real = torch.randn(2, 7, 8), torch.ones(2, 7, dtype=torch.bool)
    real[1, 4:] = False
    x[1, 4:] = float("nan")
    found = identifier(x, real)
    for row, frames in enumerate((7, 4)):
        mean = x[row, :frames].mean(0)
        right = identifier.linear.weight @ mean + identifier.linear.bias
        torch.testing.assert_close(found[row], right)


def test_a_gradient_reaches_identifier_shared_and_language_loras():
    _, upstream = make(shared_layers=2, rank=2)
    parts = ("lora_A", "lora_B", "language_identifier")
    named = dict(upstream.named_parameters())
    trained = {n: w for n, w in named.items() if any(p in n for p in parts)}
    for weight in trained.values():
        weight.requires_grad_(True)
    states, _ = upstream.states_with_gradients(*batch(4000, 2500))
    states[-1].square().sum().backward()
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in trained.values())
    backbone = {n: w for n, w in named.items() if n not in trained}
    assert backbone and all(w.grad is None for w in backbone.values())
    # Nothing of a batch stays, or a model that was used could not be copied.
    assert upstream.wav2vec2.language_identifier.posterior is None
    copy.deepcopy(upstream)


def test_a_copy_and_a_rebuilt_model_route_by_their_own_identifiers():
    _, upstream = make(shared_layers=1, rank=2)
    wavs, lengths = batch(4000, 2500)
    right = upstream.extract_features(wavs, lengths)[0][-1]
    rebuilt = Upstream.from_architecture(upstream.architecture())
    rebuilt.load_state_dict(upstream.state_dict())
    for other in (copy.deepcopy(upstream), rebuilt):
        torch.testing.assert_close(
            other.extract_features(wavs, lengths)[0][-1], right, rtol=0, atol=0
        )
        # What its own identifier says decides.
        with torch.no_grad():
            other.wav2vec2.language_identifier.linear.bias.add_(
                torch.tensor([50.0, 0.0, 0.0])
            )
        changed = other.extract_features(wavs, lengths)[0][-1]
        assert not torch.allclose(changed, right)
    assert torch.equal(upstream.extract_features(wavs, lengths)[0][-1], right)


def test_with_every_layer_shared_there_is_no_identifier():
    _, upstream = make(shared_layers=4, rank=2)
    assert not hasattr(upstream.wav2vec2, "language_identifier")
    with record_languages(upstream) as heard:
        upstream.extract_features(*batch(4000, 2500))
    assert heard == []


def test_models_without_it_are_described_as_before():
    plain, upstream = make(shared_layers=1)
    assert plain.architecture().keys() == {"hubert", "lamer", "final_norm"}
    assert upstream.architecture()["lid_routed"]["languages"] == LANGS


def test_three_quarters_are_shared_unless_a_number_is_given():
    for layers, shared in ((12, 9), (4, 3), (3, 2), (22, 16), (1, 0)):
        assert LidRoutingConfig(LANGS, layers).shared_layers == shared


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": ["eng"]}, r"languages: found \['eng'\], expected two or more"),
        ({"languages": ["eng", "eng"]}, "expected two or more different"),
        ({"shared_layers": 5}, "shared_layers: found 5, expected 0 to 4"),
        ({"shared_layers": 1.5}, "shared_layers: found 1.5"),
        ({"layers": 0}, "layers: found 0, expected 1 or more"),
        ({"layers": 5}, "layers: found 5, expected at most 4"),
        ({"targets": ["q_proj"]}, "targets: found"),
        ({"targets": []}, "targets: found"),
        ({"rank": 0}, "rank: found 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        make(**options)


def test_a_model_with_experts_is_refused():
    model = build_hubert({**ARCHITECTURE, "extractor_mode": "layer_norm"})
    upstream = Upstream(add_lamer(model, LamerConfig(allocation=2)))
    with pytest.raises(RecipeError, match="lid_routed: the model has LoRA experts"):
        upstream.route_by_language({"languages": LANGS, "layers": 2})


def test_configs_are_plain_values():
    config = LidRoutingConfig(tuple(LANGS), 4, targets=("output_dense",))
    assert vars(replace(config)) == vars(config)
    assert isinstance(config.languages, list) and isinstance(config.targets, list)
