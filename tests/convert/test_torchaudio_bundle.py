"""torchaudio's bundles by name: its own loading code, on small weights in its cache."""

import pytest
import torch
import torchaudio
from torchaudio.pipelines import Wav2Vec2Bundle

from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.convert import load_hubert
from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.convert.load import local_source, read_architecture, source_sha256
from espnet2_lamer.convert.torchaudio_bundle import bundle_names
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.hashing import sha256_file

LAYERS = 3
NAMES = {"base": "HUBERT_BASE", "large": "HUBERT_LARGE"}


@pytest.fixture
def small_bundle(monkeypatch, tmp_path):
    """Return a function that puts a small random model in the place of a bundle's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)

    def put(kind="large", change=None):
        name = NAMES[kind]
        real = getattr(torchaudio.pipelines, name)
        parameters = real._params | {
            "extractor_conv_layer_config": [(8, 10, 5)]
            + [(8, 3, 2)] * 4
            + [(8, 2, 2)] * 2,
            "encoder_embed_dim": 16,
            "encoder_pos_conv_kernel": 8,
            "encoder_pos_conv_groups": 2,
            "encoder_num_layers": LAYERS,
            "encoder_num_heads": 2,
            "encoder_ff_interm_features": 24,
        }
        bundle = Wav2Vec2Bundle(
            real._path, parameters, 16000, real._normalize_waveform, real._model_type
        )
        monkeypatch.setattr(torchaudio.pipelines, name, bundle)
        torch.manual_seed(0)
        model = torchaudio.models.wav2vec2_model(**parameters)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data.add_(0.2 * torch.randn_like(parameter))
        # As the published files are named, which are older than parametrizations.
        state = {
            key.replace("parametrizations.weight.original0", "weight_g").replace(
                "parametrizations.weight.original1", "weight_v"
            ): value
            for key, value in model.state_dict().items()
        }
        assert "encoder.transformer.pos_conv_embed.conv.weight_g" in state
        if change is not None:
            change(state)
        torch.save(state, cache / real._path)
        return name, bundle, cache / real._path

    return put


@pytest.mark.parametrize("prefix", ["", "torchaudio:"])
@pytest.mark.parametrize("kind", list(NAMES))
def test_every_hidden_state_equals_torchaudios(
    small_bundle, torchaudio_states, assert_equal_states, wavs, kind, prefix
):
    name, bundle, _ = small_bundle(kind)
    model = load_hubert(prefix + name)
    assert not model.training and model.mask_embedding is None
    assert model.normalize_waveform is bundle._normalize_waveform is (kind == "large")
    # torchaudio normalises over the whole batch, so it gets one utterance.
    for wav in wavs.split(1):
        states, _ = Upstream(model).extract_features(wav)
        assert_equal_states(states, torchaudio_states(bundle.get_model(), wav))


def test_valid_frames_of_a_padded_batch_equal_torchaudios(
    small_bundle, torchaudio_states, wavs
):
    name, bundle, _ = small_bundle("large")
    model = load_hubert(name)
    padded, lengths = wavs.clone(), torch.tensor([4000, 2500])
    padded[1, 2500:] = torch.nan
    states, frames = Upstream(model).extract_features(padded, lengths)
    bundle._normalize_waveform = False
    fed = torch.zeros_like(wavs)
    for row, length in enumerate(lengths.tolist()):
        fed[row, :length] = torch.nn.functional.layer_norm(
            wavs[row, :length], (length,)
        )
    expected = torchaudio_states(bundle.get_model(), fed, lengths)
    assert frames.tolist() == [12, 7]
    for ours, theirs in zip(states, expected, strict=True):
        for row, count in enumerate(frames.tolist()):
            torch.testing.assert_close(
                ours[row, :count], theirs[row, :count], rtol=1e-5, atol=1e-5
            )


def test_a_bundle_is_identified_by_its_file(small_bundle):
    name, _, path = small_bundle()
    assert source_sha256(name) == source_sha256(f"torchaudio:{name}")
    assert source_sha256(name) == sha256_file(path)
    assert local_source(name) == name


@pytest.mark.parametrize("name", ["HUBERT_BASE", "HUBERT_LARGE", "HUBERT_XLARGE"])
def test_the_real_bundles_build_on_the_meta_device(name):
    assert name in bundle_names()
    real = getattr(torchaudio.pipelines, name)
    with torch.device("meta"):
        ours = build_hubert(read_architecture(name)).state_dict()
        theirs = torchaudio.models.wav2vec2_model(**real._params).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items()
    }


@pytest.mark.parametrize(
    "name",
    [
        "HUBERT_HUGE",
        "torchaudio:hubert",
        "HUBERT_ASR_LARGE",
        "torchaudio:WAV2VEC2_BASE",
    ],
)
def test_an_unknown_or_unfit_bundle_is_refused_with_those_that_exist(name):
    message = "expected one of HUBERT_BASE, HUBERT_LARGE, HUBERT_XLARGE"
    for read in (load_hubert, read_architecture, source_sha256):
        with pytest.raises(RecipeError, match=message) as error:
            read(name)
        assert name.removeprefix("torchaudio:") in str(error.value)


KEY = "encoder.transformer.layers.1.attention.k_proj.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(KEY), f"missing {KEY}"),
        (lambda state: state.update(aux=torch.ones(1)), "unexpected aux"),
        (
            lambda state: state.update({KEY: torch.ones(3)}),
            rf"{KEY}: found shape \(3,\), expected \(16,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(small_bundle, change, message):
    name, _, _ = small_bundle(change=change)
    with pytest.raises(RecipeError, match=f"{name}: .*{message}"):
        load_hubert(name)


def test_a_damaged_or_absent_file_is_named(small_bundle):
    name, _, path = small_bundle()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RecipeError, match=f"{name}: {path}: cannot be read"):
        load_hubert(name)
    path.unlink()
    for read in (load_hubert, source_sha256):
        with pytest.raises(RecipeError, match=f"{name}: {path}: cannot be fetched"):
            read(name)
    assert read_architecture(name)["encoder_num_layers"] == LAYERS


def test_objects_in_the_file_are_not_built(small_bundle):
    name, _, _ = small_bundle(change=lambda state: state.update(x=print))
    with pytest.raises(RecipeError, match="cannot be read"):
        load_hubert(name)


def test_a_bundle_that_is_not_finite_is_refused(small_bundle):
    def spoil(state):
        next(v for k, v in state.items() if "k_proj.weight" in k)[0, 0] = torch.nan

    name, _, _ = small_bundle(change=spoil)
    with pytest.raises(RecipeError, match=r"1 of \d+ tensors hold NaN .*k_proj"):
        load_hubert(name)
