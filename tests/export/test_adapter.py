"""The adapter file: small, exact on its base, refused on any other."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

import espnet2_lamer
from espnet2_lamer.convert.load import can_be_fetched, public_name
from espnet2_lamer.convert.state import read_state
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.export import adapter as module
from espnet2_lamer.export.adapter import write_adapter
from espnet2_lamer.export.card import Origin
from espnet2_lamer.tasks.pretrained import (
    CENTROIDS,
    METADATA,
    as_upstream,
    content_digest,
    load_adapter,
    read_adapter,
)
from tests.export.tiny import UNITS, same, speech, states_of, write_base
from tests.export.tiny import write_experiment as write

FAMILY = {
    "loss": {},
    "bias": {"balance": "bias"},
    "projection": {"router": "projection", "balance": "bias", "top_k": 1},
    "ffn": {"targets": ["ffn"], "alpha": 4.0},
    "lora": {"allocation": 1},
    "head": {"allocation": 0},
}


def export(directory, output, *options):
    from espnet2_lamer.bin.export import main

    main(
        [
            "--kind=adapter",
            f"--experiment={directory}",
            f"--output={output}",
            *options,
        ]
    )
    return output


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    write_base(folder / "base")
    return folder


@pytest.fixture(scope="module")
def adapter(root):
    """File, experiment and model with a selection bias; the codebook is inside."""
    from espnet2_lamer.units.codebook import METADATA_KEYS, save_codebook

    model = write(root / "exp", root / "base", balance="bias")
    metadata = dict.fromkeys(METADATA_KEYS, 0) | {"K": UNITS, "teacher": "/srv/me/t"}
    centroids = torch.randn(UNITS, 3).numpy()
    save_codebook(root / "codebook.npz", centroids, metadata)
    path = export(
        *(root / "exp", root / "lamer.safetensors"),
        f"--codebook={root / 'codebook.npz'}",
        "--license=cc-by-nc-sa-4.0",
        "--base_name=someone/base",
    )
    return path, root / "exp", model, centroids


@pytest.mark.parametrize("name", FAMILY)
def test_states_of_the_whole_family_are_exact(root, tmp_path, name):
    model = write(tmp_path / "exp", root / "base", **FAMILY[name])
    expected = states_of(as_upstream(model))
    path = export(tmp_path / "exp", tmp_path / "a.safetensors")
    shutil.rmtree(tmp_path / "exp")
    loaded = espnet2_lamer.load_model(path, base=root / "base")
    assert same(states_of(loaded), expected)
    assert loaded.architecture() == as_upstream(model).architecture()
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_the_head_and_every_buffer_come_back_too(adapter, root):
    path, _, model, _ = adapter
    again = load_adapter(path, root / "base")
    expected = model.state_dict()
    assert again.state_dict().keys() == expected.keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, expected[name]), name
    wavs, lengths = speech()
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[:, ::2] = True
    mask[2, 1:] = False
    with torch.no_grad():
        found, wanted = (m.encoder(wavs, lengths, mask) for m in (again, model))
    assert torch.equal(found.logits, wanted.logits)


def test_the_base_is_not_in_the_file_and_the_codebook_is(adapter):
    path, _, model, centroids = adapter
    found = read_adapter(path)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    buffers = {n for n, b in model.named_buffers() if b is not None}
    buffers -= {"encoder.base_sha256"}
    ours = {n for n in buffers if n.endswith(("selection_bias", "load", "batches"))}
    assert found.tensors.keys() == trained | ours | {CENTROIDS}
    assert torch.equal(found.tensors[CENTROIDS], torch.from_numpy(centroids))
    assert found.metadata["license"] == "cc-by-nc-sa-4.0"
    assert found.metadata["base"]["name"] == "someone/base"
    codebook = found.metadata["codebook"]
    assert len(codebook["sha256"]) == 64 and codebook["K"] == UNITS


def test_no_path_of_this_machine_is_in_the_file(adapter, root):
    content = adapter[0].read_bytes()
    assert str(root).encode() not in content and b"/srv/me" not in content


def test_equal_input_gives_equal_bytes(adapter, tmp_path):
    path, experiment, _, _ = adapter
    one = export(experiment, tmp_path / "1.safetensors")
    two = export(experiment, tmp_path / "2.safetensors", "--name=1")
    assert one.read_bytes() == two.read_bytes()


def test_the_wrong_base_is_refused(adapter, root, tmp_path):
    path, experiment, _, _ = adapter
    for base in (
        write_base(tmp_path / "other", seed=1),
        write_base(tmp_path / "deeper", encoder_num_layers=4),
    ):
        with pytest.raises(RecipeError, match="was trained on 'someone/base'.*give th"):
            espnet2_lamer.load_model(path, base=base)
    # The same weights, prepared otherwise: the hash alone would not see it.
    shutil.copytree(root / "base", tmp_path / "louder")
    preprocessor = tmp_path / "louder" / "preprocessor_config.json"
    preprocessor.write_text(json.dumps({"do_normalize": False}))
    with pytest.raises(RecipeError, match="normalize_waveform of the base: found Fal"):
        espnet2_lamer.load_model(path, base=tmp_path / "louder")


def _other_files(base, root):
    """The same base in other files: other metadata, torch's format, several parts."""
    from safetensors.torch import load_file

    state = load_file(base / "model.safetensors")
    for name in ("metadata", "bin", "parts"):
        shutil.copytree(base, root / name)
        (root / name / "model.safetensors").unlink()
    save_file(state, root / "metadata/model.safetensors", {"format": "pt", "by": "me"})
    torch.save(state, root / "bin" / "pytorch_model.bin")
    keys = [*state]
    where = {key: f"part{number % 2}.safetensors" for number, key in enumerate(keys)}
    for number in (0, 1):
        part = root / "parts" / f"part{number}.safetensors"
        save_file({key: state[key] for key in keys[number::2]}, part)
    index = root / "parts" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    return [root / name for name in ("metadata", "bin", "parts")]


def test_the_same_base_in_another_file_is_the_same(adapter, root, tmp_path, caplog):
    caplog.set_level("INFO")
    path = adapter[0]
    expected = states_of(espnet2_lamer.load_model(path, base=root / "base"))
    assert "another file" not in caplog.text
    for base in _other_files(root / "base", tmp_path):
        found = states_of(espnet2_lamer.load_model(path, base=base))
        assert same(found, expected)
        assert f"{base}: another file than in training, the same tensors" in caplog.text
    # An adapter of an earlier version knows the file alone, and says so.
    content = read_adapter(path)
    old = dict(content.metadata)
    old["base"] = {k: v for k, v in old["base"].items() if k != "tensors_sha256"}
    old["sha256"] = content_digest(content.tensors, old)
    text = json.dumps(old)
    save_file(dict(content.tensors), tmp_path / "old.safetensors", {METADATA: text})
    load = espnet2_lamer.load_model
    assert same(states_of(load(tmp_path / "old.safetensors", root / "base")), expected)
    with pytest.raises(RecipeError, match="the same file: what its tensors were"):
        load(tmp_path / "old.safetensors", tmp_path / "bin")


def test_the_named_base_is_used_if_it_can_be_found(adapter, root, monkeypatch):
    path = adapter[0]
    with pytest.raises(RecipeError, match="'someone/base' is not found here.*base=..."):
        espnet2_lamer.load_model(path)
    monkeypatch.chdir(root)
    shutil.copytree(root / "base", root / "someone" / "base")
    assert same(
        states_of(espnet2_lamer.load_model(path)),
        states_of(espnet2_lamer.load_model(path, base=root / "base")),
    )


def test_a_file_does_not_decide_which_path_is_read(root, adapter, tmp_path):
    path = export(adapter[1], tmp_path / "a.safetensors")
    # The default is the directory's own name, not its path.
    assert read_adapter(path).metadata["base"]["name"] == "base"
    with pytest.raises(RecipeError, match="base 'base' .* is not a public name; give"):
        espnet2_lamer.load_model(path)
    for name in ("/dev/zero", "../x", "./x", "a/../b", "a/b/c", "", "~/x", "HUBERT_a"):
        assert not can_be_fetched(name)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("facebook/hubert-large-ll60k", "facebook/hubert-large-ll60k"),
        ("HUBERT_LARGE", "HUBERT_LARGE"),
        ("torchaudio:HUBERT_LARGE", "torchaudio:HUBERT_LARGE"),
        ("/srv/x/models/my_base/", "my_base"),
        ("s3prl:wavlm_base", "s3prl:wavlm_base"),
        (
            "/x/hub/models--facebook--hubert-large-ll60k/snapshots/abc",
            "facebook/hubert-large-ll60k",
        ),
    ],
)
def test_names_leave_the_directories_of_this_machine_out(source, name):
    assert public_name(source) == name


def test_a_model_that_trained_as_a_whole_has_no_adapter(root, tmp_path):
    write(tmp_path / "exp", root / "base")
    config = tmp_path / "exp" / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    settings["encoder_conf"]["lamer"] = None
    config.write_text(yaml.safe_dump(settings))
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    model, _ = LamerHubertTask.build_model_from_file(config)
    torch.save(model.state_dict(), tmp_path / "exp" / "valid.loss_m.best.pth")
    with pytest.raises(RecipeError, match="without a frozen base.*--kind zoo"):
        export(tmp_path / "exp", tmp_path / "a.safetensors")


def test_what_is_no_adapter_file_is_named(adapter, root, tmp_path):
    with pytest.raises(RecipeError, match="of a Hugging Face model give the directory"):
        espnet2_lamer.load_model(root / "base" / "model.safetensors")
    with pytest.raises(RecipeError, match="expected a name that ends in .safetensors"):
        export(adapter[1], tmp_path / "a.bin")
    with pytest.raises(RecipeError, match="file not found"):
        read_adapter(tmp_path / "none.safetensors")


@pytest.mark.parametrize("position", [0.3, 0.6, 0.95])
def test_a_changed_bit_is_noticed(adapter, root, tmp_path, position):
    content = bytearray(adapter[0].read_bytes())
    content[int(position * len(content))] ^= 1
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(RecipeError, match="damaged"):
        espnet2_lamer.load_model(tmp_path / "a.safetensors", base=root / "base")


def test_lamer_on_hubert_large_stays_below_70_mb(tmp_path, monkeypatch):
    """Paper's config, 1000 units of a 768-dimensional teacher; sizes are computed."""
    from espnet2_lamer.asr.encoder import lamer_hubert
    from espnet2_lamer.convert.architecture import build_hubert
    from espnet2_lamer.hubert.espnet_model import LamerHubertPretrainModel

    conf = yaml.safe_load(
        (Path(__file__).parents[2] / "conf/train_ssl_lamer.yaml").read_text()
    )["encoder_conf"]
    conf["lamer"]["balance"] = "bias"

    def hubert_large(source, dropouts):
        model = build_hubert({})
        model.mask_embedding = torch.rand(1024)
        return model

    monkeypatch.setattr(lamer_hubert, "load_hubert", hubert_large)
    monkeypatch.setattr(lamer_hubert, "source_sha256", lambda source: "ab" * 32)
    tokens = [*map(str, range(1000)), "<unk>", "<sos/eos>"]
    with torch.device("meta"):
        encoder = lamer_hubert.LamerHubertEncoder(num_classes=1000, base="x/y", **conf)
        large = LamerHubertPretrainModel(encoder, tokens)
    state = {
        k: torch.empty_like(v, device="cpu") for k, v in large.state_dict().items()
    }
    encoder.base_sha256 = torch.zeros(32, dtype=torch.uint8)
    monkeypatch.setattr(large, "state_dict", lambda: state)
    monkeypatch.setattr(module, "load_pretraining_model", lambda *_: large)
    monkeypatch.setattr(module, "local_source", lambda source, fetch: source)
    monkeypatch.setattr(module, "tensors_sha256", lambda source: "ab" * 32)
    monkeypatch.setattr(
        module, "_read_codebook", lambda path: (torch.zeros(1000, 768), {"K": 1000})
    )
    config = {"encoder_conf": conf | {"base": "x/y"}, "model_conf": {}}
    monkeypatch.setattr(module, "read_config", lambda _: config)
    path = tmp_path / "large.safetensors"
    write_adapter(tmp_path, path, Origin(), codebook="codebook.npz")
    experts, rank, dim, ffn, final, units = 120, 12, 1024, 4096, 768, 1000
    lora = experts * 2 * rank * (dim + ffn)
    router = experts * dim + 2 * experts
    head = units * final + dim * final + final
    values = lora + router + head + units * 768
    assert 4 * values < path.stat().st_size < 70_000_000


def test_an_adapter_of_the_state_alone_needs_the_whole_of_it(root, adapter, tmp_path):
    experiment = shutil.copytree(adapter[1], tmp_path / "exp")
    weights = experiment / "valid.loss_m.best.pth"
    state = read_state(weights)
    state.pop(next(name for name in state if name.endswith("lora_B")))
    torch.save(state, weights)
    with pytest.raises(RecipeError, match="lacks 1 tensors .*lora_B"):
        write_adapter(experiment, tmp_path / "a.safetensors", Origin())
    assert not (tmp_path / "a.safetensors").exists()
