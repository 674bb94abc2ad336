"""Hugging Face directories both ways: equal hidden states, strict keys, refusals."""

import json
import shutil

import pytest
import torch
from torch.nn import functional as F

from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.convert import load_hubert
from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.convert.huggingface import save_huggingface
from espnet2_lamer.convert.load import source_sha256, tensors_sha256
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.hashing import sha256_file
from tests.tiny_hubert import ARCHITECTURE

LAYERS = 3
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
# norm of the extractor, pre-norm transformer
TYPES = {"base": ("group", False), "large": ("layer", True)}


def transformers_model(kind, conv_bias):
    """A random HubertModel in which no LayerNorm or bias is left at its default."""
    from transformers import HubertConfig, HubertModel

    norm, stable = TYPES[kind]
    config = HubertConfig(
        **SIZES,
        feat_extract_norm=norm,
        do_stable_layer_norm=stable,
        conv_bias=conv_bias,
        layerdrop=0.0,
    )
    torch.manual_seed(0)
    model = HubertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def write(model, directory, form, normalize=True):
    """Write a model in one of the forms that are found in the wild."""
    directory.mkdir()
    model.config.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(
        json.dumps(config | {"architectures": ["HubertModel"]})
    )
    (directory / "preprocessor_config.json").write_text(
        json.dumps({"do_normalize": normalize, "sampling_rate": 16000})
    )
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    if form in ("legacy", "prefixed"):
        state = {
            key.replace("parametrizations.weight.original0", "weight_g").replace(
                "parametrizations.weight.original1", "weight_v"
            ): value
            for key, value in state.items()
        }
        assert "encoder.pos_conv_embed.conv.weight_g" in state
    if form == "prefixed":
        # What a fine-tuned export carries under its backbone's name.
        state = {f"hubert.{key}": value for key, value in state.items()}
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    else:
        torch.save(state, directory / "pytorch_model.bin")
    return directory


def waveforms():
    generator = torch.Generator().manual_seed(1)
    return 0.3 * torch.randn(2, 4000, generator=generator) + 0.1


def transformers_states(model, wavs):
    """L + 1 states, the last one after the final LayerNorm whatever the version."""
    with torch.no_grad():
        output = model(wavs, output_hidden_states=True)
    return [*output.hidden_states[:LAYERS], output.last_hidden_state]


def assert_equal_states(found, expected):
    assert len(found) == len(expected) == LAYERS + 1
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["safetensors", "bin", "legacy", "prefixed"])
@pytest.mark.parametrize("conv_bias", [True, False])
@pytest.mark.parametrize("kind", list(TYPES))
def test_every_hidden_state_equals_transformers(tmp_path, kind, conv_bias, form):
    reference = transformers_model(kind, conv_bias)
    directory = write(reference, tmp_path / "model", form, normalize=True)
    model = load_hubert(directory)
    assert not model.training
    assert model.extractor_mode == f"{TYPES[kind][0]}_norm"
    assert torch.equal(model.mask_embedding, reference.masked_spec_embed.detach())
    wavs = waveforms()
    normalised = F.layer_norm(wavs, wavs.shape[-1:])
    expected = transformers_states(reference, normalised)
    states, _ = Upstream(model).extract_features(wavs)
    assert_equal_states(states, expected)
    # The door of torchaudio: blocks 1 .. L, the last one before the final LayerNorm.
    with torch.no_grad():
        blocks, _ = model.extract_features(wavs)
    for ours, theirs in zip(blocks[:-1], expected[1:-1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    raw, _ = Upstream(model, final_norm=False).extract_features(wavs)
    torch.testing.assert_close(raw[-1], blocks[-1], rtol=1e-5, atol=1e-5)


def test_valid_frames_of_a_padded_batch_equal_transformers_attention_mask(tmp_path):
    reference = transformers_model("large", True)
    model = load_hubert(write(reference, tmp_path / "model", "safetensors", False))
    wavs, lengths = waveforms(), torch.tensor([4000, 2500])
    wavs[1, 2500:] = 0
    with torch.no_grad():
        expected = reference(
            wavs, attention_mask=torch.arange(4000) < lengths[:, None]
        ).last_hidden_state
    states, frames = Upstream(model).extract_features(wavs, lengths)
    assert frames.tolist() == [12, 7]
    for row, count in enumerate(frames.tolist()):
        torch.testing.assert_close(
            states[-1][row, :count], expected[row, :count], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("normalize", [True, False])
def test_the_preprocessor_decides_whether_the_waveform_is_normalised(
    tmp_path, normalize
):
    reference = transformers_model("large", True)
    directory = write(reference, tmp_path / "model", "safetensors", normalize)
    model = load_hubert(directory)
    assert model.normalize_waveform is normalize
    wavs = waveforms()
    fed = F.layer_norm(wavs, wavs.shape[-1:]) if normalize else wavs
    states, _ = Upstream(model).extract_features(wavs)
    assert_equal_states(states, transformers_states(reference, fed))


def test_without_a_preprocessor_it_is_normalised_as_transformers_does(tmp_path, caplog):
    directory = write(transformers_model("large", True), tmp_path / "m", "safetensors")
    (directory / "preprocessor_config.json").unlink()
    assert load_hubert(directory).normalize_waveform is True
    assert "assuming do_normalize true" in caplog.text


def test_normalisation_is_that_of_transformers_feature_extractor():
    from transformers import Wav2Vec2FeatureExtractor

    from espnet2_lamer.convert.architecture import normalize_waveform

    wavs = [waveforms()[0].numpy(), waveforms()[1, :2500].numpy()]
    theirs = Wav2Vec2FeatureExtractor(return_attention_mask=True)(
        wavs, sampling_rate=16000, padding=True, return_tensors="pt"
    ).input_values
    padded = torch.full((2, 4000), torch.nan)
    for row, wav in zip(padded, wavs, strict=True):
        row[: len(wav)] = torch.from_numpy(wav)
    # Their eps is 1e-7, ours is layer_norm's 1e-5: 6e-5 of a variance of 0.09.
    ours = normalize_waveform(padded, torch.tensor([4000, 2500]))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", list(TYPES))
@pytest.mark.parametrize("masked", [True, False])
def test_what_is_saved_loads_in_transformers_with_equal_states(tmp_path, kind, masked):
    from transformers import AutoFeatureExtractor, HubertModel

    norm, stable = TYPES[kind]
    torch.manual_seed(0)
    model = build_hubert(
        {
            **ARCHITECTURE,
            "extractor_mode": f"{norm}_norm",
            "extractor_conv_bias": stable,
            "encoder_num_layers": LAYERS,
            "encoder_ff_interm_features": 24,
            "encoder_layer_norm_first": stable,
            "normalize_waveform": stable,
        }
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.mask_embedding = torch.rand(16) if masked else None
    save_huggingface(model, tmp_path / "saved")
    theirs, loading = HubertModel.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert set(loading["missing_keys"]) <= (set() if masked else {"masked_spec_embed"})
    wavs = waveforms()
    fed = F.layer_norm(wavs, wavs.shape[-1:]) if stable else wavs
    states, _ = Upstream(model).extract_features(wavs)
    assert_equal_states(states, transformers_states(theirs.eval(), fed))
    # It stays as it is in training mode: nothing is dropped or masked.
    assert_equal_states(transformers_states(theirs.train(), fed), states)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "saved")
    assert extractor.do_normalize is stable
    assert extractor.return_attention_mask is stable

    again = load_hubert(tmp_path / "saved")
    assert again.architecture == model.architecture
    assert (again.mask_embedding is None) is not masked
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_half_precision_on_disk_comes_back_as_float32(tmp_path):
    reference = load_hubert(
        write(transformers_model("large", True), tmp_path / "a", "safetensors")
    )
    save_huggingface(reference, tmp_path / "half", dtype=torch.float16)
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("a", "half")]
    assert sizes[1] < 0.8 * sizes[0]
    for name, value in load_hubert(tmp_path / "half").state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, reference.state_dict()[name].half().float())


def test_saving_twice_gives_the_same_bytes_and_hash(tmp_path):
    model = load_hubert(
        write(transformers_model("large", True), tmp_path / "m", "safetensors")
    )
    for name in ("one", "two"):
        save_huggingface(model, tmp_path / name)
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        one, two = (tmp_path / n / name for n in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    digest = sha256_file(tmp_path / "one" / "model.safetensors")
    assert source_sha256(tmp_path / "one") == digest


@pytest.fixture
def damaged(tmp_path):
    """Return a function that changes the state or the config of a written model."""

    def build(state=None, **config):
        model = transformers_model("large", True)
        directory = write(model, tmp_path / "model", "bin")
        if state is not None:
            weights = torch.load(directory / "pytorch_model.bin")
            state(weights)
            torch.save(weights, directory / "pytorch_model.bin")
        path = directory / "config.json"
        values = json.loads(path.read_text()) | config
        values = {k: v for k, v in values.items() if v is not ...}
        path.write_text(json.dumps(values))
        shutil.copytree(directory, build.copy, dirs_exist_ok=True)
        return directory

    build.directory, build.copy = tmp_path / "model", tmp_path / "copy"
    return build


KEY = "encoder.layers.1.final_layer_norm.weight"
OURS = "encoder.transformer.layers.1.final_layer_norm.weight"


def test_a_missing_key_is_named(damaged):
    with pytest.raises(RecipeError, match=f"does not fit the model: missing {OURS}"):
        load_hubert(damaged(lambda state: state.pop(KEY)))


def test_an_unexpected_key_is_named(damaged):
    with pytest.raises(RecipeError, match="unexpected addition.weight"):
        load_hubert(damaged(lambda s: s.update({"addition.weight": torch.ones(2)})))


HEADS = {
    "ctc": ["lm_head.weight", "lm_head.bias"],
    "classification": ["projector.weight", "classifier.bias", "layer_weights"],
    "contentvec": ["final_proj.weight", "final_proj.bias"],
    "pretraining": ["label_embs_concat", "final_proj.weight"],
}


@pytest.mark.parametrize("head", HEADS)
def test_a_head_beside_the_backbone_is_left_out_with_a_line(damaged, caplog, head):
    caplog.set_level("INFO")
    plain = load_hubert(damaged())
    assert not caplog.text
    shutil.rmtree(damaged.directory)
    found = load_hubert(
        damaged(lambda s: s.update({key: torch.ones(3) for key in HEADS[head]}))
    )
    assert_same_weights(found, plain)
    for key in HEADS[head]:
        assert key.partition(".")[0] in caplog.text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_norm_eps", 1e-3),
        ("feat_proj_layer_norm", False),
        ("conv_pos_batch_norm", True),
    ],
)
def test_a_setting_that_the_network_cannot_have_is_refused(damaged, key, value):
    with pytest.raises(RecipeError, match=f"{key}: found {value!r}, expected"):
        load_hubert(damaged(**{key: value}))


def assert_same_weights(found, expected):
    wanted = expected.state_dict()
    for name, value in found.state_dict().items():
        assert torch.equal(value, wanted[name]), name


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
def test_weights_in_several_files_are_one_model(tmp_path, damaged, form):
    directory = damaged()
    plain = load_hubert(directory)
    whole = directory / "pytorch_model.bin"
    state = torch.load(whole)
    whole.unlink()
    stem, _, suffix = form.rpartition(".")
    parts = [directory / f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    names, where = sorted(state), {}
    for part, keys in zip(parts, (names[::2], names[1::2]), strict=True):
        tensors = {key: state[key] for key in keys}
        if suffix == "bin":
            torch.save(tensors, part)
        else:
            from safetensors.torch import save_file

            save_file(tensors, part)
        where |= dict.fromkeys(keys, part.name)
    index = directory / f"{form}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert_same_weights(load_hubert(directory), plain)
    assert tensors_sha256(directory) == tensors_sha256(damaged.copy)
    before = source_sha256(directory)
    content = bytearray(parts[1].read_bytes())
    content[-9] ^= 1
    parts[1].write_bytes(content)
    assert source_sha256(directory) != before
    parts[1].rename(tmp_path / "elsewhere")
    with pytest.raises(RecipeError, match=f"{parts[1].name}: no such file beside it"):
        load_hubert(directory)
    outside = {**where, names[1]: "../elsewhere"}
    index.write_text(json.dumps({"weight_map": outside}))
    with pytest.raises(RecipeError, match="elsewhere: no such file beside it"):
        load_hubert(directory)


def test_preparation_saved_with_a_tokenizer_by_transformers_5_is_read(damaged, caplog):
    directory = damaged()
    (directory / "preprocessor_config.json").unlink()
    for section, expected in (({"do_normalize": False}, False), ({}, True)):
        (directory / "processor_config.json").write_text(
            json.dumps({"feature_extractor": section, "processor_class": "X"})
        )
        assert load_hubert(directory).normalize_waveform is expected
    assert caplog.text.count("assuming do_normalize true") == 1


def test_a_model_of_another_rate_is_refused(damaged):
    directory = damaged()
    (directory / "preprocessor_config.json").write_text('{"sampling_rate": 8000}')
    with pytest.raises(RecipeError, match="sampling_rate: found 8000, expected 16000"):
        load_hubert(directory)


def test_a_wrong_shape_is_named_with_both_shapes(damaged):
    message = rf"{OURS}: found shape \(4,\), expected \(16,\)"
    with pytest.raises(RecipeError, match=message):
        load_hubert(damaged(lambda s: s.update({KEY: torch.ones(4)})))


def test_a_config_that_does_not_fit_the_weights_is_refused_in_few_words(damaged):
    with pytest.raises(RecipeError, match=r"missing .*; .* and \d+ more") as error:
        load_hubert(damaged(num_hidden_layers=5))
    assert len(str(error.value)) < 1000


def test_another_kind_of_model_is_refused(damaged):
    message = "config.json: model_type: found 'wav2vec2-conformer', expected one"
    with pytest.raises(RecipeError, match=message):
        load_hubert(damaged(model_type="wav2vec2-conformer"))


@pytest.mark.parametrize("key", ["hidden_act", "feat_extract_activation"])
def test_another_activation_is_refused(damaged, key):
    with pytest.raises(
        RecipeError, match=f"config.json: {key}: found 'relu', expected"
    ):
        load_hubert(damaged(**{key: "relu"}))


def test_a_config_without_a_key_names_it(damaged):
    with pytest.raises(RecipeError, match="config.json: key 'conv_stride' is missing"):
        load_hubert(damaged(conv_stride=...))


def test_damaged_and_absent_files_are_named(tmp_path, damaged):
    with pytest.raises(RecipeError, match="no such directory; expected a Hugging Face"):
        load_hubert(tmp_path / "nowhere")
    directory = damaged()
    weights = directory / "pytorch_model.bin"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(RecipeError, match="pytorch_model.bin: cannot be read"):
        load_hubert(directory)
    (directory / "model.safetensors").write_bytes(b"")
    with pytest.raises(RecipeError, match="model.safetensors: cannot be read"):
        load_hubert(directory)
    for name in ("model.safetensors", "pytorch_model.bin"):
        (directory / name).unlink()
    with pytest.raises(RecipeError, match="found none of model.safetensors, .*pytorch"):
        load_hubert(directory)
    (directory / "config.json").write_text("{")
    with pytest.raises(RecipeError, match="config.json: not valid JSON"):
        load_hubert(directory)
    (directory / "config.json").unlink()
    with pytest.raises(RecipeError, match="no config.json; expected a Hugging Face"):
        load_hubert(directory)


def test_pickled_objects_in_a_checkpoint_are_not_run(damaged):
    directory = damaged()
    torch.save({"weights": _Boom()}, directory / "pytorch_model.bin")
    with pytest.raises(RecipeError, match="pytorch_model.bin: cannot be read"):
        load_hubert(directory)


class _Boom:
    def __reduce__(self):
        return pytest.fail, ("code from a checkpoint was run",)
