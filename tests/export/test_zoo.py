"""A packed model gives the same output elsewhere, and no path leaves with it."""

import argparse
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

import espnet2_lamer
from espnet2_lamer.convert.packed import unpack_model
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.export.zoo import pack_model, write_full_model
from tests.damage import flip_bit
from tests.export.tiny import write_base, write_experiment

TOKENS = ["<blank>", "<unk>", "/", "a", "b", "<space>", "<sos/eos>"]
CONFIG = {
    "token_list": TOKENS,
    "token_type": "char",
    "bpemodel": None,
    "init": None,
    "input_size": None,
    "frontend": "default",
    "frontend_conf": {"n_fft": 64, "hop_length": 160, "n_mels": 8},
    "specaug": None,
    "specaug_conf": {},
    "normalize": "utterance_mvn",
    "normalize_conf": {},
    "preencoder": None,
    "preencoder_conf": {},
    "encoder": "transformer",
    "encoder_conf": {
        "output_size": 8,
        "attention_heads": 2,
        "linear_units": 8,
        "num_blocks": 1,
        "input_layer": "linear",
    },
    "postencoder": None,
    "postencoder_conf": {},
    "decoder": None,
    "decoder_conf": {},
    "joint_net_conf": {},
    "ctc_conf": {},
    "model": "espnet",
    "model_conf": {"ctc_weight": 1.0},
}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A tiny untrained ASR model as ``final/`` of an experiment, with its logits."""
    from espnet2.tasks.asr import ASRTask

    espnet2_lamer.register()
    torch.manual_seed(0)
    model = ASRTask.build_model(argparse.Namespace(**CONFIG)).eval()
    directory = tmp_path_factory.mktemp("exp") / "asr_tiny"
    final = directory / "final"
    final.mkdir(parents=True)
    (final / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    torch.save(model.state_dict(), final / "model.pth")
    return directory, _logits(model)


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory):
    """A tiny pretraining in its self-contained form."""
    root = tmp_path_factory.mktemp("ssl")
    write_experiment(root / "exp", write_base(root / "base"))
    write_full_model(root / "exp", root / "full")
    return root / "full"


def _logits(model):
    speech = torch.sin(torch.arange(8000) / 20.0)[None]
    with torch.no_grad():
        encoded, _ = model.encode(speech, torch.tensor([8000]))
        return model.ctc.log_softmax(encoded)


def _pack(experiment, output, **changes):
    config = experiment / "final" / "config.yaml"
    if changes:
        settings = yaml.safe_load(config.read_text(encoding="utf-8")) | changes
        config = output.parent / "config.yaml"
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    pack_model("asr", config, experiment / "final" / "model.pth", output)


def test_espnet_loads_the_zip_elsewhere_with_the_same_output(
    experiment, tmp_path, monkeypatch
):
    from espnet2.bin.asr_inference import Speech2Text
    from espnet_model_zoo.downloader import ModelDownloader

    directory, expected = experiment
    copy = tmp_path / "somewhere"
    shutil.copytree(directory, copy)
    output = tmp_path / "packed" / "model.zip"
    pack_model("asr", copy / "final/config.yaml", copy / "final/model.pth", output)
    shutil.rmtree(copy)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    files = ModelDownloader("zoo").download_and_unpack(str(output))
    assert set(files) == {"asr_train_config", "asr_model_file"}
    assert all(Path(p).is_relative_to(elsewhere / "zoo") for p in files.values())
    espnet2_lamer.register()
    speech2text = Speech2Text(**files, beam_size=1, ctc_weight=1.0)
    assert torch.equal(_logits(speech2text.asr_model), expected)

    again = unpack_model(output, "ours")
    assert set(again) == set(files)
    speech2text = Speech2Text(**again, beam_size=1, ctc_weight=1.0)
    assert torch.equal(_logits(speech2text.asr_model), expected)


def test_the_zip_has_the_entries_of_espnets_own_and_no_absolute_path(
    experiment, tmp_path, monkeypatch
):
    from espnet2.main_funcs.pack_funcs import pack

    directory, _ = experiment
    _pack(directory, tmp_path / "ours.zip")
    monkeypatch.chdir(directory / "final")
    pack(
        files={"asr_model_file": "model.pth"},
        yaml_files={"asr_train_config": "config.yaml"},
        outpath=tmp_path / "espnets.zip",
    )
    content = {}
    for name in ("ours", "espnets"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip") as archive:
            names = set(archive.namelist()) - {"model.pth.sha256"}
            assert names == {"meta.yaml", "config.yaml", "model.pth"}
            content[name] = yaml.safe_load(archive.read("meta.yaml"))
            everything = b"".join(archive.read(member) for member in archive.namelist())
            assert str(directory).encode() not in everything
    for key in ("files", "yaml_files", "espnet", "torch"):
        assert content["ours"][key] == content["espnets"][key]


def test_packing_twice_gives_the_same_bytes(experiment, tmp_path):
    for name in ("a.zip", "b.zip"):
        _pack(experiment[0], tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_training_paths_are_left_out_of_the_config(experiment, tmp_path):
    _pack(experiment[0], tmp_path / "m.zip", output_dir="/a/b", config="conf/x.yaml")
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        packed = yaml.safe_load(archive.read("config.yaml"))
    assert packed == CONFIG


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (
            {"frontend_conf": {"extra": ["x", "/nowhere/base"]}},
            r"frontend_conf.extra\[1",
        ),
        ({"bpemodel": "here.model"}, "bpemodel"),
        ({"model_conf": {"stats": "sub/here.npz"}}, "model_conf.stats"),
        ({"encoder_conf": {"base": "hub/name"}}, "encoder_conf.base"),
        ({"decoder_conf": {"whisper": "base"}}, "decoder_conf.whisper"),
        ({"frontend_conf": {"upstream": "exp"}}, "frontend_conf.upstream"),
        ({"frontend": "stored_features"}, "frontend: found 'stored_features'"),
    ],
)
def test_a_config_that_needs_files_elsewhere_is_refused_by_key(
    experiment, tmp_path, monkeypatch, changes, key
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.model").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "here.npz").touch()
    with pytest.raises(RecipeError, match=key):
        _pack(experiment[0], tmp_path / "m.zip", **changes)
    assert not (tmp_path / "m.zip").exists()


def test_a_named_option_file_travels_and_is_found_again(experiment, tmp_path):
    bpe = tmp_path / "units" / "bpe.model"
    bpe.parent.mkdir()
    bpe.write_bytes(b"pieces")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG | {"bpemodel": str(bpe)}))
    pack_model(
        "asr",
        config,
        experiment[0] / "final" / "model.pth",
        tmp_path / "m.zip",
        options=[bpe],
        card="# card\n",
        metadata={"codebook_sha256": "ab"},
    )
    shutil.rmtree(bpe.parent)
    unpacked = unpack_model(tmp_path / "m.zip", tmp_path / "cache")
    settings = yaml.safe_load(Path(unpacked["asr_train_config"]).read_text())
    assert Path(settings["bpemodel"]).read_bytes() == b"pieces"
    folder = Path(unpacked["asr_train_config"]).parent
    assert (folder / "README.md").read_text() == "# card\n"
    assert yaml.safe_load((folder / "meta.yaml").read_text())["codebook_sha256"] == "ab"


def test_a_zip_packed_anew_under_its_old_name_is_not_taken_from_the_cache(
    experiment, tmp_path
):
    seen = set()
    for token_type in ("char", "word", "word"):
        _pack(experiment[0], tmp_path / "m.zip", token_type=token_type)
        unpacked = unpack_model(tmp_path / "m.zip", tmp_path / "cache")
        settings = yaml.safe_load(Path(unpacked["asr_train_config"]).read_text())
        assert settings["token_type"] == token_type
        seen.add(unpacked["asr_train_config"])
    assert len(seen) == 2


def test_an_interrupted_unpacking_is_done_again(experiment, tmp_path):
    _pack(experiment[0], tmp_path / "m.zip")
    unpacked = unpack_model(tmp_path / "m.zip", tmp_path / "cache")
    model = Path(unpacked["asr_model_file"])
    whole = model.read_bytes()
    model.write_bytes(whole[:10])
    (model.parent / ".complete").unlink()
    unpack_model(tmp_path / "m.zip", tmp_path / "cache")
    assert model.read_bytes() == whole


@pytest.mark.parametrize("content", [{"model": {"a": torch.zeros(1)}}, [1], "code"])
def test_only_plain_state_dicts_are_packed(experiment, tmp_path, content):
    if content == "code":
        content = argparse.Namespace(a=1)  # unpickling it needs a class
    torch.save(content, tmp_path / "model.pth")
    config = experiment[0] / "final" / "config.yaml"
    with pytest.raises(RecipeError, match="model.pth"):
        pack_model("asr", config, tmp_path / "model.pth", tmp_path / "m.zip")


def test_colliding_and_missing_options_are_named(experiment, tmp_path):
    final = experiment[0] / "final"
    for options, message in [
        ([final / "config.yaml"], "config.yaml of its own"),
        ([tmp_path / "none"], "no such file"),
    ]:
        with pytest.raises(RecipeError, match=message):
            pack_model(
                "asr",
                final / "config.yaml",
                final / "model.pth",
                tmp_path / "m.zip",
                options=options,
            )


def test_the_command_line_packs_an_experiment_with_card_and_results(
    experiment, tmp_path
):
    from espnet2_lamer.bin.export import main

    results = tmp_path / "RESULTS.md"
    results.write_text("# RESULTS\n|dataset|CER|\n|---|---|\n|eng|12.3|\n")
    (tmp_path / "codebook.npz").write_bytes(b"")
    main(
        [
            f"--experiment={experiment[0]}",
            f"--output={tmp_path / 'tiny.zip'}",
            f"--results={results}",
            f"--codebook={tmp_path / 'codebook.npz'}",
            "--license=cc-by-nc-sa-4.0",
            "--note=Teacher: mHuBERT-147, cc-by-nc-sa-4.0.",
            "--languages",
            "eng",
            "yue",
        ]
    )
    with zipfile.ZipFile(tmp_path / "tiny.zip") as archive:
        assert archive.read("RESULTS.md") == results.read_bytes()
        card = archive.read("README.md").decode()
        # SHA-256 of nothing.
        assert "e3b0c44298fc1c149afbf4c8996fb924" in archive.read("meta.yaml").decode()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "cc-by-nc-sa-4.0"
    assert front["language"] == ["eng", "yue"]
    assert front["pipeline_tag"] == "automatic-speech-recognition"
    assert "Teacher: mHuBERT-147" in card
    assert "|eng|12.3|" in card
    assert "\n## RESULTS\n" in card


def test_the_command_line_names_what_is_missing(tmp_path):
    from espnet2_lamer.bin.export import main

    with pytest.raises(RecipeError, match="config.yaml: file not found"):
        main([f"--experiment={tmp_path}", f"--output={tmp_path / 'm.zip'}"])


def test_twenty_of_twenty_flipped_bits_in_unpacked_weights_are_refused_or_mended(
    pretraining, tmp_path, caplog
):
    archive = tmp_path / "ssl.zip"
    pack_model("ssl", pretraining / "config.yaml", pretraining / "model.pth", archive)
    paths = unpack_model(archive, tmp_path / "cache")
    weights = Path(paths["ssl_model_file"])
    whole = weights.read_bytes()
    for seed in range(20):
        flip_bit(weights, seed)
        with pytest.raises(RecipeError, match=f"{weights}: damaged since it was wri"):
            espnet2_lamer.load_model(weights)
        caplog.clear()
        assert unpack_model(archive, tmp_path / "cache") == paths
        assert f"{weights}: damaged since it was unpacked; unpacked" in caplog.text
        assert weights.read_bytes() == whole
    espnet2_lamer.load_model(weights)


def test_espnets_unpacking_leaves_the_checksum_beside_the_weights(
    pretraining, tmp_path
):
    archive = tmp_path / "ssl.zip"
    pack_model("ssl", pretraining / "config.yaml", pretraining / "model.pth", archive)
    with zipfile.ZipFile(archive) as members:
        members.extractall(tmp_path / "elsewhere")
    flip_bit(tmp_path / "elsewhere" / "model.pth", 0)
    with pytest.raises(RecipeError, match="damaged since it was written"):
        espnet2_lamer.load_model(tmp_path / "elsewhere" / "model.pth")


@pytest.mark.parametrize("name", ["config.yaml", "meta.yaml", "model.pth.sha256"])
def test_other_members_that_changed_or_went_are_unpacked_again(
    pretraining, tmp_path, name
):
    archive = tmp_path / "ssl.zip"
    pack_model("ssl", pretraining / "config.yaml", pretraining / "model.pth", archive)
    paths = unpack_model(archive, tmp_path / "cache")
    member = Path(paths["ssl_model_file"]).with_name(name)
    whole = member.read_bytes()
    flip_bit(member, 1)
    unpack_model(archive, tmp_path / "cache")
    assert member.read_bytes() == whole
    member.unlink()
    unpack_model(archive, tmp_path / "cache")
    assert member.read_bytes() == whole


def test_weights_that_changed_since_training_are_not_packed(pretraining, tmp_path):
    copy = shutil.copytree(pretraining, tmp_path / "copy")
    flip_bit(copy / "model.pth", 0)
    with pytest.raises(RecipeError, match=r"copy/model.pth: damaged since it was wr"):
        pack_model("ssl", copy / "config.yaml", copy / "model.pth", tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()
