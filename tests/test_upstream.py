"""``load_model``: L + 1 frozen states, the same from every door."""

import json
from functools import partial

import pytest
import torch

import espnet2_lamer
from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.convert.huggingface import save_huggingface
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers import LamerConfig, add_lamer
from tests.tiny_hubert import ARCHITECTURE

HUBERT = {
    **ARCHITECTURE,
    # What a frozen upstream must not do.
    "encoder_dropout": 0.5,
    "encoder_layer_drop": 0.5,
}
GROUP_NORM = {"extractor_mode": "group_norm", "encoder_layer_norm_first": False}
LAMER = {"allocation": "2,4", "rank": 2, "top_k": 2, "targets": ["output_dense"]}
LENGTHS = torch.tensor([3200, 2000, 400])


def build(lamer=None, final_norm=True, **changes):
    torch.manual_seed(0)
    model = build_hubert(HUBERT | changes)
    if lamer is not None:
        add_lamer(model, LamerConfig(**lamer))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return Upstream(model, lamer, final_norm)


def speech():
    wavs = torch.randn(3, 3200, generator=torch.Generator().manual_seed(1))
    return wavs.masked_fill(torch.arange(3200) >= LENGTHS[:, None], 0.0)


def test_there_are_l_plus_1_states_and_0_is_the_transformers_input():
    upstream = build(encoder_layer_drop=0.0)
    states, frames = upstream.extract_features(speech(), LENGTHS)
    assert (upstream.num_layers, upstream.dim) == (2, 16)
    assert [tuple(state.shape) for state in states] == [(3, 9, 16)] * 3
    assert frames.tolist() == [9, 6, 1]
    wav2vec2 = upstream.wav2vec2
    with torch.no_grad():
        features, count = wav2vec2.feature_extractor(speech(), LENGTHS)
        x, _ = wav2vec2.encoder._preprocess(features, count)
        positions = wav2vec2.encoder.transformer.pos_conv_embed(x)
        blocks, _ = wav2vec2.extract_features(speech(), LENGTHS)
    torch.testing.assert_close(states[0], x + positions)
    # torchaudio's list begins one layer later.
    assert torch.equal(states[1], blocks[0])


@pytest.mark.parametrize("changes", [{}, GROUP_NORM], ids=["pre-norm", "post-norm"])
def test_final_norm_decides_about_the_last_state_of_a_pre_norm_model(changes):
    normed, raw = build(**changes), build(final_norm=False, **changes)
    wavs = speech()[:1]
    with_norm, _ = normed.extract_features(wavs)
    without, _ = raw.extract_features(wavs)
    for one, other in zip(with_norm[:-1], without[:-1], strict=True):
        assert torch.equal(one, other)
    layer_norm = normed.wav2vec2.encoder.transformer.layer_norm
    if changes:
        assert torch.equal(with_norm[-1], without[-1])
    else:
        torch.testing.assert_close(with_norm[-1], layer_norm(without[-1]))
    with torch.no_grad():
        assert torch.equal(with_norm[-1], normed.wav2vec2(wavs)[0])


@pytest.mark.parametrize("changes", [{}, GROUP_NORM], ids=["layer_norm", "group_norm"])
def test_a_padded_batch_equals_its_utterances_one_by_one(changes):
    upstream = build(LAMER, **changes)
    wavs = speech()
    wavs[1, 2000:] = wavs[2, 400:] = torch.nan
    states, frames = upstream.extract_features(wavs, LENGTHS)
    assert frames.tolist() == [9, 6, 1]
    for row, (samples, count) in enumerate(zip(LENGTHS, frames, strict=True)):
        alone, no_frames = upstream.extract_features(wavs[row : row + 1, :samples])
        assert no_frames is None
        for together, single in zip(states, alone, strict=True):
            torch.testing.assert_close(
                together[row, :count], single[0], rtol=1e-5, atol=1e-5
            )


def _note(computed, *_):
    computed.append(1)


@pytest.mark.parametrize("changes", [{}, GROUP_NORM])
def test_blocks_after_the_state_that_is_asked_for_are_not_computed(changes):
    upstream = build(LAMER, **changes)
    every, frames = upstream.extract_features(speech(), LENGTHS)
    for last in range(3):
        computed = []
        hooks = [
            block.register_forward_hook(partial(_note, computed))
            for block in upstream.wav2vec2.encoder.transformer.layers[last:]
        ]
        states, count = upstream.extract_features(speech(), LENGTHS, up_to=last)
        for hook in hooks:
            hook.remove()
        assert len(states) == last + 1 and not computed
        assert torch.equal(count, frames)
        assert all(map(torch.equal, states, every))


def test_it_stays_in_eval_mode_and_trains_nothing():
    upstream = build(LAMER)
    first, _ = upstream.extract_features(speech(), LENGTHS)
    assert upstream.train() is upstream
    assert not any(module.training for module in upstream.modules())
    assert not any(parameter.requires_grad for parameter in upstream.parameters())
    second, _ = upstream.extract_features(speech(), LENGTHS)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other) and not one.requires_grad


FAMILY = [
    None,
    LAMER,
    {"allocation": 1, "rank": 3},
    {"allocation": "0,4", "router": "projection", "balance": "bias", "rank": 2},
]


@pytest.mark.parametrize("lamer", FAMILY)
@pytest.mark.parametrize("changes", [{}, GROUP_NORM], ids=["layer_norm", "group_norm"])
def test_a_description_and_weights_give_the_same_features(lamer, changes):
    upstream = build(lamer, final_norm=False, **changes)
    # A description goes through a config file.
    description = json.loads(json.dumps(upstream.architecture()))
    torch.manual_seed(9)
    again = Upstream.from_architecture(description)
    assert again.architecture() == description
    again.load_state_dict(upstream.state_dict(), strict=True)
    expected, _ = upstream.extract_features(speech(), LENGTHS)
    found, _ = again.extract_features(speech(), LENGTHS)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_a_plain_hubert_directory_is_a_model_too(tmp_path):
    upstream = build()
    save_huggingface(upstream.wav2vec2, tmp_path / "hubert")
    loaded = espnet2_lamer.load_model(tmp_path / "hubert")
    assert loaded.lamer is None and loaded.final_norm
    expected, _ = upstream.extract_features(speech(), LENGTHS)
    found, _ = loaded.extract_features(speech(), LENGTHS)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Config and epoch files as training leaves them, and the model they hold."""
    import argparse

    import yaml

    from espnet2_lamer.tasks.hubert import LamerHubertTask

    root = tmp_path_factory.mktemp("upstream")
    save_huggingface(build().wav2vec2, root / "base")
    config = {
        "encoder": "lamer_hubert",
        "model": "lamer",
        "num_classes": 3,
        "token_list": ["0", "1", "2", "<unk>", "<sos/eos>"],
        "encoder_conf": {
            "base": str(root / "base"),
            "lamer": LAMER,
            "final_dim": 8,
            "final_norm": False,
        },
        "model_conf": {},
        "best_model_criterion": [["valid", "loss_m", "min"]],
    }
    torch.manual_seed(3)
    model = LamerHubertTask.build_model(argparse.Namespace(**config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_()
    directory = root / "exp"
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(model.state_dict(), directory / "valid.loss_m.best.pth")
    return directory, model


def same_features(upstream, model):
    found, _ = upstream.extract_features(speech(), LENGTHS)
    with torch.no_grad():
        expected, _ = model.encoder.wav2vec2.extract_features(speech(), LENGTHS)
    return all(map(torch.equal, found[1:], expected))


def test_an_experiment_loads_with_its_base(experiment, tmp_path):
    directory, model = experiment
    upstream = espnet2_lamer.load_model(directory)
    assert upstream.final_norm is False
    assert upstream.lamer["targets"] == ["output_dense"]
    assert same_features(upstream, model)
    again = Upstream.from_architecture(json.loads(json.dumps(upstream.architecture())))
    again.load_state_dict(upstream.state_dict())
    assert same_features(again, model)


def test_a_base_that_moved_can_be_named(experiment, tmp_path):
    import shutil

    directory, model = experiment
    shutil.copytree(directory, tmp_path / "exp")
    config = (tmp_path / "exp" / "config.yaml").read_text()
    base = str(directory.parent / "base")
    assert base in config
    (tmp_path / "exp" / "config.yaml").write_text(config.replace(base, "/gone/base"))
    with pytest.raises(RecipeError, match="/gone/base: no such directory"):
        espnet2_lamer.load_model(tmp_path / "exp")
    assert same_features(espnet2_lamer.load_model(tmp_path / "exp", base=base), model)


def test_another_base_is_refused(experiment, tmp_path):
    save_huggingface(build(encoder_dropout=0.0).wav2vec2, tmp_path / "same")
    other = build().wav2vec2
    with torch.no_grad():
        other.encoder.transformer.layer_norm.bias.add_(1)
    save_huggingface(other, tmp_path / "other")
    with pytest.raises(RecipeError, match="give the base it was trained on"):
        espnet2_lamer.load_model(experiment[0], base=tmp_path / "other")
    # What counts is the file, not where it is.
    assert same_features(
        espnet2_lamer.load_model(experiment[0], base=tmp_path / "same"), experiment[1]
    )


def test_what_is_no_model_is_refused_by_name(tmp_path, experiment):
    with pytest.raises(RecipeError, match="no such directory; expected a Hugging Face"):
        espnet2_lamer.load_model(tmp_path / "nowhere")
    (tmp_path / "config.yaml").write_text("encoder: conformer\n")
    with pytest.raises(
        RecipeError, match="encoder: found 'conformer', expected 'lamer"
    ):
        espnet2_lamer.load_model(tmp_path)
    text = (experiment[0] / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(RecipeError, match="found none of .*best.pth.*not finished"):
        espnet2_lamer.load_model(tmp_path)
    (tmp_path / "valid.loss_m.best.pth").write_bytes(b"PK damaged")
    with pytest.raises(RecipeError, match="valid.loss_m.best.pth: cannot be read"):
        espnet2_lamer.load_model(tmp_path)
