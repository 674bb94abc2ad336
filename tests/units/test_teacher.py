"""Teachers: frame counts, normalisation, layers, identity, pickling."""

import pickle

import numpy as np
import pytest
import torch

from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.convert.huggingface import save_huggingface
from espnet2_lamer.data.frames import num_frames
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.units.teacher import load_teacher

LAYERS = 3


@pytest.fixture(scope="module", params=["layer_norm", "group_norm"])
def hubert_dir(request, tmp_path_factory):
    torch.manual_seed(0)
    large = request.param == "layer_norm"
    model = build_hubert(
        {
            "extractor_mode": request.param,
            "extractor_conv_layer_config": [[8, 10, 5]]
            + [[8, 3, 2]] * 4
            + [[8, 2, 2]] * 2,
            "extractor_conv_bias": large,
            "encoder_embed_dim": 16,
            "encoder_num_layers": LAYERS,
            "encoder_num_heads": 2,
            "encoder_ff_interm_features": 32,
            "encoder_layer_norm_first": large,
            "encoder_pos_conv_kernel": 8,
            "encoder_pos_conv_groups": 2,
        }
    )
    directory = tmp_path_factory.mktemp(request.param) / "hubert"
    save_huggingface(model, directory)
    return directory


def noise(samples, seed=0):
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


def test_mfcc_has_exactly_hubert_frames_for_every_sample_count(mfcc):
    audio = noise(32000)
    for samples in [*range(400, 2001), 15999, 16000, 16001, 31999]:
        features = mfcc.forward(audio[:samples])
        assert features.shape == (num_frames(samples), 39)
        assert features.dtype == np.float32


def test_mfcc_frame_depends_on_the_samples_of_the_hubert_frame(mfcc):
    from torchaudio.compliance.kaldi import mfcc as kaldi_mfcc

    audio = noise(4000)
    # Undo what follows the static coefficients: they are affine in the teacher's.
    whole = mfcc.forward(audio)[:, :13]
    frame = 5
    alone = kaldi_mfcc(
        torch.tensor(audio[frame * 320 : frame * 320 + 400])[None],
        sample_frequency=16000.0,
        frame_length=25.0,
        frame_shift=20.0,
    )[0].numpy()
    other = kaldi_mfcc(
        torch.tensor(audio[320 * 6 : 320 * 6 + 400])[None],
        sample_frequency=16000.0,
        frame_length=25.0,
        frame_shift=20.0,
    )[0].numpy()
    static = kaldi_mfcc(
        torch.tensor(audio)[None],
        sample_frequency=16000.0,
        frame_length=25.0,
        frame_shift=20.0,
    ).numpy()
    scale = static.std(0)
    np.testing.assert_allclose(
        (whole[frame] - whole[frame + 1]) * scale, alone - other, rtol=0, atol=1e-2
    )


def test_mfcc_is_normalised_per_utterance(mfcc):
    features = mfcc.forward(noise(16000))
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(features.std(0), 1, atol=1e-4)


def test_digital_silence_gives_finite_features(mfcc):
    assert np.isfinite(mfcc.forward(np.zeros(1600, np.float32))).all()


def test_too_short_audio_is_refused(mfcc):
    with pytest.raises(RecipeError, match="399 samples"):
        mfcc.forward(noise(399))


def test_hubert_features_equal_transformers_hidden_states(hubert_dir):
    from transformers import AutoFeatureExtractor, HubertModel

    audio = noise(7777)
    model = HubertModel.from_pretrained(hubert_dir).eval()
    values = AutoFeatureExtractor.from_pretrained(hubert_dir)(
        audio, sampling_rate=16000, return_tensors="pt"
    ).input_values
    with torch.no_grad():
        states = model(values, output_hidden_states=True).hidden_states
    for layer in (1, 2):
        features = load_teacher(str(hubert_dir), layer).forward(audio)
        np.testing.assert_allclose(features, states[layer][0].numpy(), atol=1e-4)


def test_hubert_frame_count_is_the_students_from_400_samples_up(hubert_dir):
    teacher = load_teacher(str(hubert_dir), 1)
    audio = noise(2000)
    for samples in range(400, 2001, 7):
        assert len(teacher.forward(audio[:samples])) == num_frames(samples)


def test_blocks_above_the_wanted_layer_never_run(hubert_dir):
    teacher = load_teacher(str(hubert_dir), 2)
    assert len(teacher._model.encoder.transformer.layers) == 2


def test_identity_names_weights_layer_and_normalisation(hubert_dir):
    assert load_teacher(str(hubert_dir), 2).identity == {
        "source": str(hubert_dir),
        "sha256": sha256_file(hubert_dir / "model.safetensors"),
        "layer": 2,
        "normalisation": "waveform mean and variance",
    }


@pytest.mark.parametrize("layer", [None, 0, LAYERS + 1])
def test_a_layer_the_teacher_lacks_is_refused(hubert_dir, layer):
    with pytest.raises(RecipeError, match=f"layers 1 to {LAYERS}"):
        load_teacher(str(hubert_dir), layer)


def test_mfcc_with_a_layer_is_refused():
    with pytest.raises(RecipeError, match="no layers"):
        load_teacher("mfcc", 9)


def test_a_pickled_teacher_carries_no_weights_and_computes_the_same(hubert_dir):
    teacher = load_teacher(str(hubert_dir), 2)
    data = pickle.dumps(teacher)
    assert len(data) < 1000
    load_teacher.cache_clear()
    audio = noise(5000)
    np.testing.assert_array_equal(
        pickle.loads(data).forward(audio), teacher.forward(audio)
    )


def test_features_do_not_depend_on_the_number_of_threads(hubert_dir):
    teacher = load_teacher(str(hubert_dir), 3)
    audio = noise(40000)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = teacher.forward(audio)
        torch.set_num_threads(2)
        two = teacher.forward(audio)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(one, two)


@pytest.mark.slow  # imports S3PRL
def test_an_s3prl_upstream_gives_the_same_features_as_its_checkpoint(hubert_dir):
    # S3PRL's own wrapper of Hugging Face HuBERT, given a path: no download.
    source = f"s3prl:hf_hubert_custom:{hubert_dir}"
    audio = noise(16123)
    expected = load_teacher(str(hubert_dir), 2).forward(audio)
    teacher = load_teacher(source, 2)
    np.testing.assert_allclose(teacher.forward(audio), expected, atol=1e-4)
    for samples in (800, 1040, 16000, 16001):
        assert len(teacher.forward(audio[:samples])) == num_frames(samples)


@pytest.mark.slow  # imports S3PRL
def test_an_unknown_s3prl_upstream_is_refused():
    with pytest.raises(RecipeError, match="no upstream 'nonesuch'"):
        load_teacher("s3prl:nonesuch", 1)


@pytest.mark.slow  # imports S3PRL
def test_an_s3prl_upstream_with_other_frames_is_refused():
    with pytest.raises(RecipeError, match="every 160 samples, expected 320"):
        load_teacher("s3prl:fbank", 0)


def test_a_trained_model_teaches_with_its_experts(tmp_path, hubert_dir, monkeypatch):
    from espnet2_lamer import upstream
    from espnet2_lamer.convert import load_hubert
    from espnet2_lamer.layers import LamerConfig, add_lamer

    torch.manual_seed(1)
    config = LamerConfig(allocation="2,2,2", rank=2)
    adapted = upstream.Upstream(add_lamer(load_hubert(hubert_dir), config))
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:  # zero at first: make the experts matter
                value.normal_(std=0.5)
    (tmp_path / "config.yaml").touch()
    monkeypatch.setattr(upstream, "load_model", lambda source: adapted)
    audio = noise(9999)
    states, _ = adapted.extract_features(torch.tensor(audio)[None])
    load_teacher.cache_clear()
    teacher = load_teacher(str(tmp_path), 2)
    features = teacher.forward(audio)
    np.testing.assert_allclose(features, states[2][0].numpy(), atol=1e-5)
    plain = load_teacher(str(hubert_dir), 2)
    assert abs(features - plain.forward(audio)).max() > 1e-2
    assert teacher.identity["sha256"] != plain.identity["sha256"]
