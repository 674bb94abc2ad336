"""ESPnet experiments without experts: stock HubertTask's and ours."""

import argparse
import functools

import pytest
import torch
import yaml

import espnet2_lamer
from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.convert import load_hubert
from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.convert.huggingface import save_huggingface
from espnet2_lamer.convert.load import read_architecture, source_sha256
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.hashing import sha256_file
from tests.tiny_hubert import ARCHITECTURE

LAYERS = 3
SIZES = {
    **ARCHITECTURE,
    "encoder_num_layers": LAYERS,
    "encoder_ff_interm_features": 24,
    "encoder_dropout": 0.1,
    "final_dim": 12,
}
LARGE = {"extractor_mode": "layer_norm", "encoder_layer_norm_first": True}
BASE = {"extractor_mode": "group_norm", "encoder_layer_norm_first": False}
TOKENS = [*map(str, range(5)), "<unk>", "<sos/eos>"]
BEST = "valid.loss.best.pth"
CONFIG = {
    "num_classes": 5,
    "token_list": TOKENS,
    "model_conf": {},
    "input_size": 1,
    "frontend": None,
    "frontend_conf": {},
    "specaug": None,
    "normalize": None,
    "init": None,
    "best_model_criterion": [["valid", "loss", "min"]],
}


def save(model, config, directory):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(model.state_dict(), directory / BEST)
    return model.eval()


@pytest.fixture
def stock(tmp_path):
    """Return a function that writes a stock experiment and gives its model."""
    from espnet2.tasks.hubert import HubertTask

    def write(conf, **changes):
        config = CONFIG | {
            "encoder": "torchaudio_hubert",
            "encoder_conf": conf,
            "model": "torchaudio",
        }
        torch.manual_seed(0)
        model = HubertTask.build_model(argparse.Namespace(**config))
        return save(model, config | changes, tmp_path / "exp")

    return write


@pytest.fixture
def ours(tmp_path):
    """Return a function that writes one of our experiments and gives its model."""
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    def write(conf, **changes):
        config = CONFIG | {
            "encoder": "lamer_hubert",
            "encoder_conf": conf,
            "model": "lamer",
        }
        torch.manual_seed(0)
        model = LamerHubertTask.build_model(argparse.Namespace(**config))
        return save(model, config | changes, tmp_path / "exp")

    return write


def wav2vec2_of(model):
    return model.encoder.hubert_pretrain_model.wav2vec2


def mask_embedding_of(model):
    generator = model.encoder.hubert_pretrain_model.mask_generator
    return generator.mask_embedding.detach()


@pytest.fixture
def assert_same(torchaudio_states, wavs):
    """Return the comparison of a loaded model with the trained one's backbone."""

    def compare(found, wav2vec2, wavs=wavs, lengths=None):
        states, frames = Upstream(found).extract_features(wavs, lengths)
        expected = torchaudio_states(wav2vec2, wavs, lengths)
        counts = [12, 12] if frames is None else frames.tolist()
        assert len(states) == LAYERS + 1
        for ours, theirs in zip(states, expected, strict=True):
            for row, count in enumerate(counts):
                torch.testing.assert_close(
                    ours[row, :count], theirs[row, :count], rtol=1e-5, atol=1e-5
                )

    return compare


@pytest.mark.parametrize("kind", [BASE, LARGE], ids=["base", "large"])
def test_every_hidden_state_equals_that_of_espnets_encoder(
    stock, assert_same, wavs, tmp_path, kind
):
    model = stock(SIZES | kind)
    hubert = load_hubert(tmp_path / "exp")
    assert not hubert.training and hubert.normalize_waveform is False
    assert torch.equal(hubert.mask_embedding, mask_embedding_of(model))
    assert_same(hubert, wav2vec2_of(model))
    if kind is LARGE:
        padded, lengths = wavs.clone(), torch.tensor([4000, 2500])
        padded[1, 2500:] = 0
        assert_same(hubert, wav2vec2_of(model), padded, lengths)


def test_load_model_takes_a_stock_experiment(stock, assert_same, tmp_path):
    model = stock(SIZES | LARGE)
    upstream = espnet2_lamer.load_model(tmp_path / "exp")
    assert upstream.lamer is None
    assert_same(upstream.wav2vec2, wav2vec2_of(model))


def test_what_the_config_does_not_state_is_espnets_default(tmp_path):
    from espnet2.asr.encoder.hubert_encoder import TorchAudioHuBERTPretrainEncoder

    (tmp_path / "config.yaml").write_text(
        "encoder: torchaudio_hubert\ninput_size: 1\nencoder_conf:\n"
        "  encoder_num_layers: 1\n"
    )
    with torch.device("meta"):
        found = build_hubert(read_architecture(tmp_path))
    encoder = TorchAudioHuBERTPretrainEncoder(1, encoder_num_layers=1)
    theirs = encoder.hubert_pretrain_model.wav2vec2.state_dict()
    assert {key: value.shape for key, value in found.state_dict().items()} == {
        key: value.shape for key, value in theirs.items()
    }
    assert found.extractor_mode == "group_norm"
    assert found.architecture["encoder_num_heads"] == 12
    assert found.architecture["encoder_layer_norm_first"] is False


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", [BASE, LARGE], ids=["base", "large"])
def test_ours_without_experts_is_a_plain_hubert(
    ours, assert_same, tmp_path, kind, normalize
):
    model = ours(SIZES | kind | {"normalize_waveform": normalize})
    hubert = load_hubert(tmp_path / "exp")
    assert hubert.normalize_waveform is normalize
    assert torch.equal(hubert.mask_embedding, mask_embedding_of(model))
    # Dropout belongs to the training.
    assert hubert.architecture["encoder_dropout"] == 0.0
    assert_same(hubert, wav2vec2_of(model))


def test_ours_trained_from_a_base_has_the_bases_network(ours, assert_same, tmp_path):
    structure = {key: SIZES[key] for key in SIZES if key.startswith("e")}
    base = build_hubert(structure | LARGE | {"normalize_waveform": False})
    base.mask_embedding = torch.rand(16)
    save_huggingface(base, tmp_path / "base")
    conf = {"base": str(tmp_path / "base"), "final_dim": 12}
    model = ours(conf)
    # What earlier versions let stand beside `base` is not the network.
    config = tmp_path / "exp" / "config.yaml"
    text = config.read_text()
    assert "  final_dim: 12\n" in text
    config.write_text(text.replace("final_dim: 12\n", "encoder_num_layers: 24\n"))
    hubert = load_hubert(tmp_path / "exp")
    assert hubert.normalize_waveform is False
    assert_same(hubert, wav2vec2_of(model))
    (tmp_path / "base").rename(tmp_path / "moved")
    message = "exp/config.yaml: encoder_conf.base: .*base: no such directory"
    with pytest.raises(RecipeError, match=message):
        load_hubert(tmp_path / "exp")


def test_experts_are_refused_with_advice(ours, tmp_path):
    ours(SIZES | LARGE | {"lamer": {"allocation": 2, "rank": 2}})
    message = "config.yaml: encoder_conf.lamer: .*espnet2_lamer.load_model.*bin.export"
    for read in (load_hubert, read_architecture):
        with pytest.raises(RecipeError, match=message):
            read(tmp_path / "exp")


def test_the_best_model_is_the_one_that_is_loaded(stock, tmp_path):
    model = stock(SIZES | LARGE)
    directory = tmp_path / "exp"
    state = model.state_dict()
    key = "encoder.hubert_pretrain_model.mask_generator.mask_embedding"
    (directory / BEST).unlink()
    for value, name in enumerate(
        ["latest.pth", BEST, "valid.loss.ave.pth", "model.pth"]
    ):
        state[key] = torch.full((16,), float(value))
        torch.save(state, directory / name)
        assert load_hubert(directory).mask_embedding[0] == value
        assert source_sha256(directory) == sha256_file(directory / name)


PREFIX = "encoder.hubert_pretrain_model."
KEY = "encoder.transformer.layers.1.attention.k_proj.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(f"{PREFIX}wav2vec2.{KEY}"), f"missing {KEY}"),
        (lambda s: s.update({"ctc.weight": torch.ones(1)}), "unexpected ctc.weight"),
        (
            lambda s: s.update({f"{PREFIX}wav2vec2.{KEY}": torch.ones(3)}),
            rf"{KEY}: found shape \(3,\), expected \(16,\)",
        ),
        (
            lambda s: s.update(
                {f"{PREFIX}mask_generator.mask_embedding": torch.ones(3)}
            ),
            r"mask embedding: found shape \(3,\), expected \(16,\)",
        ),
        (lambda s: s.update({"ctc": 3}), "ctc: found int, expected a tensor"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(stock, tmp_path, change, message):
    state = stock(SIZES | LARGE).state_dict()
    change(state)
    torch.save(state, tmp_path / "exp" / BEST)
    with pytest.raises(RecipeError, match=f"{BEST}: .*{message}"):
        load_hubert(tmp_path / "exp")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("encoder: conformer", "encoder: found 'conformer', expected 'torchaudio_hub"),
        ("num_classes: 5", "encoder: found None, expected 'torchaudio_hubert' or 'lam"),
        ("- 1", "found list, expected a mapping"),
        ("a: [", "not valid YAML"),
        ("!!python/object/apply:os.system ['false']", "not valid YAML"),
        ("encoder: lamer_hubert\nencoder_conf: 3", "encoder_conf: found 3, expected a"),
        (
            "encoder: torchaudio_hubert\ninput_size: 1\nnormalize: utterance_mvn",
            "normalize: found 'utterance_mvn', expected null",
        ),
        (
            "encoder: torchaudio_hubert\nfrontend: default",
            "frontend: found 'default', expected null",
        ),
    ],
)
def test_a_config_of_something_else_is_named(tmp_path, config, message):
    (tmp_path / "config.yaml").write_text(config)
    for read in (load_hubert, read_architecture):
        with pytest.raises(RecipeError, match=f"config.yaml: {message}"):
            read(tmp_path)


def test_a_size_that_no_network_has_is_named(stock, tmp_path):
    stock(SIZES | LARGE, encoder_conf=SIZES | LARGE | {"encoder_num_heads": "two"})
    with pytest.raises(RecipeError, match="no HuBERT can be built with .*'two'"):
        load_hubert(tmp_path / "exp")


def test_damaged_and_absent_weights_are_named(stock, tmp_path):
    stock(SIZES | LARGE)
    weights = tmp_path / "exp" / BEST
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(RecipeError, match=f"{BEST}: cannot be read"):
        load_hubert(tmp_path / "exp")
    torch.save({"x": functools.partial(print)}, weights)
    with pytest.raises(RecipeError, match=rf"{BEST}: cannot be read \(.*functools"):
        load_hubert(tmp_path / "exp")
    weights.unlink()
    with pytest.raises(RecipeError, match=f"found none of model.pth, .*{BEST}, latest"):
        load_hubert(tmp_path / "exp")
    assert read_architecture(tmp_path / "exp")["encoder_num_layers"] == LAYERS
