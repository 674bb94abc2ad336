"""One entry for every format: what decides, what is refused, who else uses it."""

import json
import os

import pytest
import torch
import yaml

import espnet2_lamer
from espnet2_lamer.convert import load_hubert
from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.convert.huggingface import save_huggingface
from espnet2_lamer.convert.load import local_source, read_architecture, source_sha256
from espnet2_lamer.errors import RecipeError


@pytest.fixture
def fairseq_file(fairseq_model, write_fairseq):
    """A checkpoint of fairseq."""
    return write_fairseq(fairseq_model())


def same(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)


def test_an_error_is_a_value_error():
    assert issubclass(RecipeError, ValueError)


def test_a_huggingface_directory_is_described_without_weights(fairseq_file, tmp_path):
    model = load_hubert(fairseq_file)
    save_huggingface(model, tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    architecture = read_architecture(tmp_path / "hf")
    assert build_hubert(architecture).architecture == model.architecture
    with pytest.raises(RecipeError, match="found none of model.safetensors"):
        source_sha256(tmp_path / "hf")


def test_every_format_gives_the_same_model(fairseq_file, tmp_path):
    first = load_hubert(fairseq_file)
    save_huggingface(first, tmp_path / "hf")
    second = load_hubert(str(tmp_path / "hf"))
    assert same(first, second)
    assert first.architecture == second.architecture
    assert torch.equal(first.mask_embedding, second.mask_embedding)
    assert source_sha256(fairseq_file) != source_sha256(tmp_path / "hf")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "a file of a Hugging Face directory, give the directory"),
        ("pytorch_model.bin", "a file of a Hugging Face directory, give the directory"),
        ("config.yaml", "a file of an ESPnet experiment, give the directory"),
        ("packed.zip", "a packed model, load it with espnet2_lamer.load_model"),
    ],
)
def test_a_file_that_is_no_checkpoint_alone_is_refused(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(RecipeError, match=f"{name}: found {message}"):
        load_hubert(tmp_path / name)


def test_a_directory_of_nothing_is_named(tmp_path):
    message = "no config.json; expected a Hugging Face HuBERT directory, or an ESPnet"
    for read in (load_hubert, read_architecture, source_sha256, local_source):
        with pytest.raises(RecipeError, match=message):
            read(tmp_path)


def test_what_is_nowhere_names_all_formats(tmp_path):
    for read in (load_hubert, read_architecture, source_sha256, local_source):
        with pytest.raises(RecipeError, match="no such directory") as error:
            read(tmp_path / "nowhere")
        for word in ("Hugging Face", "HUBERT_LARGE", "fairseq .pt", "ESPnet"):
            assert word in str(error.value)


def test_a_directory_may_be_named_as_a_bundle(fairseq_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = load_hubert(fairseq_file)
    save_huggingface(model, "HUBERT_LARGE")
    assert same(load_hubert("HUBERT_LARGE"), model)


def test_saved_weights_are_readable_by_whom_the_umask_lets(fairseq_file, tmp_path):
    model = load_hubert(fairseq_file)
    old = os.umask(0o027)
    try:
        save_huggingface(model, tmp_path / "group")
        os.umask(0o022)
        save_huggingface(model, tmp_path / "world")
    finally:
        os.umask(old)
    for directory, mode in (("group", 0o640), ("world", 0o644)):
        for path in (tmp_path / directory).iterdir():
            assert path.stat().st_mode & 0o777 == mode, path.name


def test_the_encoder_takes_a_fairseq_file_as_base(fairseq_file):
    from espnet2_lamer.asr.encoder.lamer_hubert import LamerHubertEncoder

    encoder = LamerHubertEncoder(
        num_classes=5, base=str(fairseq_file), lamer={"allocation": 2, "rank": 2}
    )
    model = load_hubert(fairseq_file)
    assert bytes(encoder.base_sha256.tolist()).hex() == source_sha256(fairseq_file)
    generator = encoder.hubert_pretrain_model.mask_generator
    assert torch.equal(generator.mask_embedding, model.mask_embedding)
    wavs = torch.randn(1, 4000)
    with torch.no_grad():
        found, _ = encoder.eval().wav2vec2(wavs)
        expected, _ = model(wavs)
    assert torch.equal(found, expected)


def test_a_teacher_and_an_upstream_may_be_a_fairseq_file(fairseq_file):
    from espnet2_lamer.units.teacher import load_teacher

    model = load_hubert(fairseq_file)
    assert same(espnet2_lamer.load_model(fairseq_file).wav2vec2, model)
    teacher = load_teacher(str(fairseq_file), 2)
    assert teacher.identity["sha256"] == source_sha256(fairseq_file)
    samples = torch.randn(4000)
    with torch.no_grad():
        expected = model.extract_features(samples[None])[0][1][0]
    found = torch.from_numpy(teacher.forward(samples.numpy()))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_stage_0_records_a_base_of_any_format(fairseq_file, tmp_path):
    from espnet2_lamer.recipe.base_training import _record, _write_random

    record = _record(str(fairseq_file))
    assert record == {
        "source": str(fairseq_file),
        "path": str(fairseq_file),
        "sha256": source_sha256(fairseq_file),
    }

    class Options:
        seed = 3
        random_upstream = tmp_path / "random"

    _write_random(record["path"], Options)
    model = load_hubert(fairseq_file)
    assert load_hubert(Options.random_upstream).architecture == model.architecture

    exp = tmp_path / "exp"
    exp.mkdir()
    config = {"encoder": "lamer_hubert", "encoder_conf": model.architecture}
    (exp / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    prefix = "encoder.hubert_pretrain_model.wav2vec2."
    state = {prefix + key: value for key, value in model.state_dict().items()}
    torch.save(state, exp / "model.pth")
    record = _record(str(exp))
    assert record["path"] == str(exp)
    assert same(load_hubert(record["path"]), model)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["k_proj.bias", "label_embeddings", "masked_spec"])
def test_tensors_that_are_not_finite_are_refused_at_stage_0(tmp_path, name, value):
    """Whatever the format: a base or a teacher, and ours as well."""
    from safetensors.torch import load_file, save_file

    from espnet2_lamer.export.adapter import write_adapter
    from espnet2_lamer.export.card import Origin
    from espnet2_lamer.recipe.base_training import check_weights
    from espnet2_lamer.tasks.pretrained import METADATA, content_digest, read_adapter
    from tests.export.tiny import write_base, write_experiment

    def spoil(state, part=name):
        (key,) = [k for k in state if part in k][:1]
        state[key] = state[key].clone()
        state[key].view(-1)[3] = value
        return state

    base = write_base(tmp_path / "base")
    exp = tmp_path / "exp"
    write_experiment(exp, base)

    def check(base, teacher):
        paths = {"base": base, "teacher": teacher}
        check_weights({k: {"path": str(v), "sha256": "0"} for k, v in paths.items()})

    check(base, exp)
    message = "tensors hold NaN or infinite values, e.g. .*"
    if name == "label_embeddings":  # of ours only: base and teacher have no head
        write_adapter(exp, tmp_path / "a.safetensors", Origin())
        adapter = read_adapter(tmp_path / "a.safetensors")
        tensors, data = spoil(dict(adapter.tensors)), dict(adapter.metadata)
        data["sha256"] = content_digest(tensors, data)
        metadata = {METADATA: json.dumps(data)}
        save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
        with pytest.raises(RecipeError, match=f"a.safetensors: .*{message}{name}"):
            espnet2_lamer.load_model(tmp_path / "a.safetensors", base)
        weights = exp / "valid.loss_m.best.pth"
        torch.save(spoil(torch.load(weights)), weights)
        with pytest.raises(RecipeError, match=f"exp/.*{message}{name}"):
            check(base, exp)
        return
    weights = base / "model.safetensors"
    save_file(spoil(load_file(weights)), weights)
    write_base(tmp_path / "other")
    for pair in ((base, tmp_path / "other"), (tmp_path / "other", base)):
        with pytest.raises(RecipeError, match=f"model.safetensors: .*{message}{name}"):
            check(*pair)


def test_a_fairseq_file_that_is_not_finite_is_refused(fairseq_model, write_fairseq):
    model = fairseq_model()
    model.encoder.layers[1].fc1.weight.data[2, 1] = torch.inf
    with pytest.raises(RecipeError, match="infinite values, e.g. encoder.layers.1.fc1"):
        load_hubert(write_fairseq(model))
