"""Teachers: frame counts, normalisation, layers, identity, pickling."""

import argparse
import pickle
import time
from multiprocessing import current_process

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed

from espnet2_lamer.constants import num_frames
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.units.teacher import (
    Teacher,
    absolute_source,
    gpu_of_process,
    load_teacher,
)

LAYERS = 3


@pytest.fixture(scope="module", params=["layer_norm", "group_norm"])
def hubert_dir(request, hubert_dirs):
    return hubert_dirs[request.param]


def noise(samples, seed=0):
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


def test_mfcc_has_exactly_hubert_frames_for_every_sample_count(mfcc):
    audio = noise(32000)
    for samples in [*range(400, 1041), 15999, 16000, 16001, 31999]:
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
    audio = noise(48000)
    # Every count of two strides, and some longer ones.
    for samples in (*range(400, 1041), 15999, 16000, 16001, *range(47000, 47321, 40)):
        assert len(teacher.forward(audio[:samples])) == num_frames(samples)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_blocks_above_the_wanted_layer_never_run(hubert_dir, layer):
    from torchaudio.models.wav2vec2.components import EncoderLayer

    teacher = load_teacher(str(hubert_dir), layer)
    ran = []

    def note(module, *args):
        if isinstance(module, EncoderLayer):
            ran.append(module)

    hook = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        teacher.forward(noise(2000))
    finally:
        hook.remove()
    assert len(ran) == layer


class OffByFrames(Teacher):
    """Counts frames, of which it has some more or fewer than HuBERT."""

    dim = 1
    identity = {"source": "test", "layer": 1}

    def __init__(self, more):
        self.more = more

    def _features(self, waveforms):
        frames = num_frames(waveforms.shape[1]) + self.more
        return torch.arange(float(frames)).expand(len(waveforms), -1)[..., None]


def test_one_frame_too_many_is_dropped_and_one_missing_repeats_the_last():
    for samples in range(1040, 3000, 53):
        frames = num_frames(samples)
        audio = noise(samples)
        expected = np.arange(frames, dtype=np.float32)[:, None]
        np.testing.assert_array_equal(OffByFrames(0).forward(audio), expected)
        np.testing.assert_array_equal(OffByFrames(1).forward(audio), expected)
        expected[-1] = frames - 2
        np.testing.assert_array_equal(OffByFrames(-1).forward(audio), expected)


@pytest.mark.parametrize(("more", "samples"), [(2, 8000), (-2, 8000), (-1, 400)])
def test_frames_that_are_further_off_are_refused(more, samples):
    with pytest.raises(RecipeError, match=f"features for {samples} samples, expected"):
        OffByFrames(more).forward(noise(samples))


def test_features_of_a_batch_are_those_of_each_utterance_alone(hubert_dir):
    teacher = load_teacher(str(hubert_dir), 2)
    audio = np.stack([noise(4321, seed=1), 30 * noise(4321, seed=2), noise(4321, 3)])
    together = teacher.forward_batch(audio).numpy()
    for row, features in zip(audio, together, strict=True):
        np.testing.assert_allclose(features, teacher.forward(row), atol=1e-5)


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


def test_a_relative_teacher_loads_in_another_directory(hubert_dir, monkeypatch):
    monkeypatch.chdir(hubert_dir.parent)
    teacher = load_teacher(hubert_dir.name, 1)
    data = pickle.dumps(teacher)
    load_teacher.cache_clear()
    monkeypatch.chdir("/")
    audio = noise(3000)
    np.testing.assert_array_equal(
        pickle.loads(data).forward(audio), teacher.forward(audio)
    )


def test_only_the_path_of_a_source_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").touch()
    assert absolute_source("model") == str(tmp_path / "model")
    assert absolute_source("s3prl:x_custom:model") == f"s3prl:x_custom:{tmp_path}/model"
    for source in ("mfcc", "facebook/hubert-large-ll60k", "s3prl:hubert"):
        assert absolute_source(source) == source
    url = "s3prl:x_custom:https://host/model.pt"
    assert absolute_source(url) == url


def test_cuda_without_a_gpu_is_refused(hubert_dir):
    with pytest.raises(RecipeError, match="--device cuda: torch finds no GPU"):
        load_teacher(str(hubert_dir), 1, "cuda")


def test_an_unknown_device_is_refused():
    with pytest.raises(RecipeError, match="--device tpu: expected one of cpu, cuda"):
        load_teacher("mfcc", None, "tpu")


def which_gpu(seconds):
    """In a worker: the GPU that it takes of two."""
    time.sleep(seconds)
    return gpu_of_process(current_process().name, 2), current_process().name


def test_processes_spread_over_gpus():
    assert gpu_of_process("MainProcess", 4) == 0
    assert [gpu_of_process(f"LokyProcess-{n}", 3) for n in range(1, 6)] == [
        *(0, 1, 2, 0, 1)
    ]
    found = Parallel(n_jobs=2)(delayed(which_gpu)(0.5) for _ in range(4))
    assert sorted(gpu for gpu, _ in set(found)) == [0, 1]


def test_a_teacher_is_loaded_on_the_gpu_of_its_process(hubert_dir, monkeypatch):
    load_teacher.cache_clear()
    chosen = []
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 3,
        "set_device": chosen.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    # What is computed where is not the question here.
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: self)
    teacher = load_teacher(str(hubert_dir), 1, "cuda", gpus=3)
    monkeypatch.setattr(current_process(), "_name", "LokyProcess-6")
    load_teacher.cache_clear()
    assert pickle.loads(pickle.dumps(teacher)).gpus == 3
    assert chosen == [0, 2]
    with pytest.raises(RecipeError, match="--gpus 4: torch finds 3 GPUs"):
        load_teacher(str(hubert_dir), 1, "cuda", gpus=4)
    load_teacher.cache_clear()


@pytest.mark.gpu
def test_features_on_a_gpu_are_those_of_the_cpu(hubert_dir):
    audio = np.stack([noise(16000, seed) for seed in range(3)])
    expected = load_teacher(str(hubert_dir), 3).forward_batch(audio)
    found = load_teacher(str(hubert_dir), 3, "cuda").forward_batch(audio)
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)


class CollectsStates(torch.nn.Module):
    """An upstream as S3PRL's: transformers' HuBERT, all states."""

    def __init__(self, directory):
        super().__init__()
        from transformers import HubertModel

        self.model = HubertModel.from_pretrained(directory).eval()

    def forward(self, waveforms):
        output = self.model(torch.stack(waveforms), output_hidden_states=True)
        return {"hidden_states": output.hidden_states}


@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_an_upstream_is_cut_above_the_layer_where_its_state_stays_the_same(
    hubert_dir, layer
):
    from espnet2_lamer.units.teacher import stop_at

    upstream, audio = CollectsStates(hubert_dir), torch.tensor(noise(5000))
    with torch.no_grad():
        expected = upstream([audio])["hidden_states"][layer]
        blocks = stop_at(upstream, layer, LAYERS + 1)
        found = upstream([audio])["hidden_states"][layer]
    assert torch.equal(found, expected)
    assert len(upstream.model.encoder.layers) == blocks
    assert blocks <= min(layer + 1, LAYERS)


def test_an_upstream_whose_states_need_every_block_is_left_whole(hubert_dirs):
    from espnet2_lamer.units.teacher import stop_at

    class DependsOnTheLast(CollectsStates):
        def forward(self, waveforms):
            states = super().forward(waveforms)["hidden_states"]
            return {"hidden_states": [state + states[-1] for state in states]}

    upstream = DependsOnTheLast(hubert_dirs["group_norm"])
    assert stop_at(upstream, 1, LAYERS + 1) == LAYERS
    assert len(upstream.model.encoder.layers) == LAYERS


@pytest.mark.slow  # imports S3PRL
def test_an_s3prl_upstream_gives_the_same_features_as_its_checkpoint(hubert_dir):
    # S3PRL's own wrapper of Hugging Face HuBERT, given a path: no download.
    source = f"s3prl:hf_hubert_custom:{hubert_dir}"
    audio = noise(16123)
    expected = load_teacher(str(hubert_dir), 1).forward(audio)
    with pytest.raises(RecipeError, match="--trust_s3prl_files true"):
        load_teacher(source, 1)
    teacher = load_teacher(source, 1, trust_s3prl_files=True)
    # In worker processes as well.
    assert teacher.__reduce__()[1] == (source, 1, "cpu", True, 1)
    np.testing.assert_allclose(teacher.forward(audio), expected, atol=1e-4)
    assert len(teacher._upstream.model.encoder.layers) < LAYERS
    for samples in (*range(400, 1400, 7), 16000, 16001):
        assert len(teacher.forward(audio[:samples])) == num_frames(samples)
    batch = np.stack([audio[:4000], 9 * audio[4000:8000]])
    for row, features in zip(batch, teacher.forward_batch(batch), strict=True):
        np.testing.assert_allclose(features, teacher.forward(row), atol=1e-5)


@pytest.mark.slow  # imports S3PRL
def test_an_unknown_s3prl_upstream_is_refused():
    with pytest.raises(RecipeError, match="no upstream 'nonesuch'"):
        load_teacher("s3prl:nonesuch", 1)


@pytest.mark.slow  # imports S3PRL
def test_an_s3prl_upstream_with_other_frames_is_refused():
    with pytest.raises(RecipeError, match="every 160 samples, expected 320"):
        load_teacher("s3prl:fbank", 0)


def test_an_espnet_experiment_teaches_as_its_own_network(tmp_path):
    from espnet2.tasks.hubert import HubertTask

    from tests.convert.test_espnet_experiment import BASE, CONFIG, SIZES, save

    names = {"encoder": "torchaudio_hubert", "model": "torchaudio"}
    config = CONFIG | names | {"encoder_conf": SIZES | BASE}
    torch.manual_seed(0)
    model = HubertTask.build_model(argparse.Namespace(**config))
    hubert = save(model, config, tmp_path / "exp").encoder.hubert_pretrain_model
    audio = noise(7000)
    with torch.no_grad():
        states, _ = hubert.wav2vec2.extract_features(torch.tensor(audio)[None])
    features = load_teacher(str(tmp_path / "exp"), 2).forward(audio)
    np.testing.assert_allclose(features, states[1][0].numpy(), atol=1e-5)


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
