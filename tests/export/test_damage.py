"""Damaged zips, configs and weight files end in a clear error or do no harm."""

import io
import json
import random
import shutil
import stat
import struct
import time
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save, save_file

import espnet2_lamer
from espnet2_lamer.convert.packed import unpack_model
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.tasks.pretrained import METADATA, content_digest, read_adapter
from tests.export import mutations
from tests.export.tiny import same, states_of, write_base, write_experiment

BEST = "valid.loss_m.best.pth"
QUICK, ALL = 20, 220


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A base, a pretraining on it, its zip and its adapter file, all sound."""
    from espnet2_lamer.bin.export import main

    root = tmp_path_factory.mktemp("good")
    base = write_base(root / "base")
    write_experiment(root / "exp", base, balance="bias")
    for kind, name in (("zoo", "ssl.zip"), ("adapter", "ssl.safetensors")):
        main(
            [
                *(f"--kind={kind}", "--task=ssl", f"--experiment={root / 'exp'}"),
                f"--output={root / name}",
            ]
        )
    with zipfile.ZipFile(root / "ssl.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    expected = states_of(espnet2_lamer.load_model(root / "ssl.zip"))
    assert same(
        states_of(espnet2_lamer.load_model(root / "ssl.safetensors", base=base)),
        expected,
    )
    return SimpleNamespace(root=root, base=base, members=members, expected=expected)


def _zip(path, members):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # of names that occur twice
        for name, content in members:
            archive.writestr(name, content)
    return path


def _torch_bytes(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _state(content):
    return torch.load(io.BytesIO(content), weights_only=True)


# Each takes sound files, an empty directory, random numbers and the path of a file
# that must not appear. It returns what to load, where its base is, and whether it
# must be the sound model if it loads at all.


def zip_bytes(good, here, draw, canary):
    content = (good.root / "ssl.zip").read_bytes()
    path = here / "m.zip"
    path.write_bytes(mutations.bytes_of(content, draw))
    return path, None, True


def zip_config_value(good, here, draw, canary):
    config = yaml.safe_load(good.members["config.yaml"])
    inside = ("encoder_conf", "model_conf", "num_classes", "token_list", "encoder")
    config = mutations.value_of(config, draw, draw.choice([inside[:1], inside, ()]))
    members = good.members | {"config.yaml": yaml.safe_dump(config)}
    return _zip(here / "m.zip", members.items()), None, False


def zip_config_text(good, here, draw, canary):
    text = good.members["config.yaml"].decode()
    members = good.members | {"config.yaml": mutations.yaml_of(text, draw, canary)}
    return _zip(here / "m.zip", members.items()), None, False


def zip_meta_value(good, here, draw, canary):
    meta = mutations.value_of(yaml.safe_load(good.members["meta.yaml"]), draw)
    members = good.members | {"meta.yaml": yaml.safe_dump(meta)}
    return _zip(here / "m.zip", members.items()), None, True


def zip_meta_text(good, here, draw, canary):
    text = good.members["meta.yaml"].decode()
    members = good.members | {"meta.yaml": mutations.yaml_of(text, draw, canary)}
    return _zip(here / "m.zip", members.items()), None, True


def zip_weights_tensors(good, here, draw, canary):
    state = mutations.tensors_of(_state(good.members["model.pth"]), draw, canary)
    members = good.members | {"model.pth": _torch_bytes(state)}
    return _zip(here / "m.zip", members.items()), None, True


def zip_weights_bytes(good, here, draw, canary):
    damaged = mutations.bytes_of(good.members["model.pth"], draw)
    members = good.members | {"model.pth": damaged}
    return _zip(here / "m.zip", members.items()), None, False


def zip_members(good, here, draw, canary):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    extra = draw.choice(
        [
            (str(canary), b"x"),
            (f"../{canary.name}", b"x"),
            (f"a/../../{canary.name}", b"x"),
            (link, str(canary.parent).encode()),
            ("config.yaml", b"encoder: x\n"),
            ("meta.yaml", b"{}"),
            ("a\0b", b"x"),
            ("n" * 300, b"x"),
            ("model.pth/inside", b"x"),
            ("\udcff".encode("utf-8", "surrogateescape").decode("latin-1"), b"x"),
        ]
    )
    place = draw.choice([0, 1, 4])
    members = list(good.members.items())
    return _zip(here / "m.zip", [*members[:place], extra, *members[place:]]), None, True


def adapter_bytes(good, here, draw, canary):
    content = (good.root / "ssl.safetensors").read_bytes()
    path = here / "a.safetensors"
    path.write_bytes(mutations.bytes_of(content, draw))
    return path, good.base, True


def adapter_header(good, here, draw, canary):
    content = (good.root / "ssl.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = mutations.value_of(json.loads(content[8 : 8 + length]), draw)
    text = json.dumps(header).encode()
    size = draw.choice([len(text)] * 4 + [len(text) + 1, 0, 2**63, 10**8])
    path = here / "a.safetensors"
    path.write_bytes(struct.pack("<Q", size) + text + content[8 + length :])
    return path, good.base, True


def _adapter(path, tensors, metadata):
    """Write an adapter file whose own checksum is right, as an attacker would."""
    metadata = metadata | {"sha256": content_digest(tensors, metadata)}
    path.write_bytes(save(tensors, metadata={METADATA: json.dumps(metadata)}))
    return path


def adapter_metadata(good, here, draw, canary):
    adapter = read_adapter(good.root / "ssl.safetensors")
    metadata = mutations.value_of(dict(adapter.metadata), draw)
    path = _adapter(here / "a.safetensors", adapter.tensors, metadata)
    return path, good.base, False


def adapter_tensors(good, here, draw, canary):
    adapter = read_adapter(good.root / "ssl.safetensors")
    tensors = mutations.tensors_of(dict(adapter.tensors), draw)
    tensors = {name: value.clone().contiguous() for name, value in tensors.items()}
    # Head and counters are not part of the features.
    return _adapter(here / "a.safetensors", tensors, adapter.metadata), good.base, True


def _experiment(good, here):
    return shutil.copytree(good.root / "exp", here / "exp")


def experiment_config_value(good, here, draw, canary):
    directory = _experiment(good, here)
    config = yaml.safe_load((directory / "config.yaml").read_text())
    config = mutations.value_of(config, draw, draw.choice([("encoder_conf",), ()]))
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    return directory, None, False


def experiment_config_text(good, here, draw, canary):
    directory = _experiment(good, here)
    path = directory / "config.yaml"
    damaged = mutations.yaml_of(path.read_text(), draw, canary)
    path.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    return directory, None, False


def experiment_weights_tensors(good, here, draw, canary):
    directory = _experiment(good, here)
    state = _state((directory / BEST).read_bytes())
    torch.save(mutations.tensors_of(state, draw, canary), directory / BEST)
    return directory, None, True


def experiment_weights_bytes(good, here, draw, canary):
    directory = _experiment(good, here)
    damaged = mutations.bytes_of((directory / BEST).read_bytes(), draw)
    (directory / BEST).write_bytes(damaged)
    return directory, None, False


def base_config(good, here, draw, canary):
    directory = shutil.copytree(good.base, here / "base")
    name = draw.choice(["config.json"] * 3 + ["preprocessor_config.json"])
    value = json.loads((directory / name).read_text())
    (directory / name).write_text(json.dumps(mutations.value_of(value, draw)))
    return directory, None, False


def base_config_bytes(good, here, draw, canary):
    directory = shutil.copytree(good.base, here / "base")
    content = (directory / "config.json").read_bytes()
    deep = b'{"model_type": ' + b"[" * 10**5
    damaged = mutations.bytes_of(content, draw)
    (directory / "config.json").write_bytes(draw.choice([damaged, damaged, deep]))
    return directory, None, False


def base_weights_bytes(good, here, draw, canary):
    directory = shutil.copytree(good.base, here / "base")
    content = (directory / "model.safetensors").read_bytes()
    damaged = mutations.bytes_of(content, draw)
    (directory / "model.safetensors").write_bytes(damaged)
    return directory, None, False


def base_weights_tensors(good, here, draw, canary):
    directory = shutil.copytree(good.base, here / "base")
    path = directory / "model.safetensors"
    tensors = mutations.tensors_of(load_file(path), draw)
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, path)
    return directory, None, False


KINDS = [
    *(zip_bytes, zip_config_value, zip_config_text, zip_meta_value, zip_meta_text),
    *(zip_weights_tensors, zip_weights_bytes, zip_members),
    *(adapter_bytes, adapter_header, adapter_metadata, adapter_tensors),
    *(experiment_config_value, experiment_config_text),
    *(experiment_weights_tensors, experiment_weights_bytes),
    *(base_config, base_config_bytes, base_weights_bytes, base_weights_tensors),
]


def _numbers():
    for number in range(ALL):
        marks = [] if number < QUICK else [pytest.mark.slow]
        kind = KINDS[number % len(KINDS)].__name__
        yield pytest.param(number, marks=marks, id=f"{number}-{kind}")


@pytest.mark.parametrize("number", list(_numbers()))
def test_damage_is_a_clear_error_or_does_no_harm(good, tmp_path, number):
    here, canary = tmp_path / "here", tmp_path / "canary"
    here.mkdir()
    draw = random.Random(number)
    make = KINDS[number % len(KINDS)]
    source, base, must_be_sound = make(good, here, draw, canary)
    started = time.monotonic()
    try:
        model = espnet2_lamer.load_model(source, base=base)
    except RecipeError as error:
        # The file is named, and Python's own words are no message.
        assert str(here) in str(error) or str(good.base) in str(error), error
        assert "Traceback" not in str(error) and len(str(error)) < 5000
    else:
        if must_be_sound:
            assert same(states_of(model), good.expected)
    assert time.monotonic() - started < 20, "a size in a file must not cost minutes"
    assert not canary.exists(), "something in the file was run or written outside"


def test_damaged_codebooks_are_a_clear_error_or_sound(tmp_path):
    from espnet2_lamer.units.codebook import METADATA_KEYS, load_codebook, save_codebook

    metadata = dict.fromkeys(METADATA_KEYS, 0) | {"K": 5}
    save_codebook(tmp_path / "good.npz", torch.randn(5, 3).numpy(), metadata)
    content = (tmp_path / "good.npz").read_bytes()
    centroids = load_codebook(tmp_path / "good.npz").centroids
    refused = 0
    for number in range(60):
        path = tmp_path / "bad.npz"
        path.write_bytes(mutations.bytes_of(content, random.Random(number)))
        try:
            assert (load_codebook(path).centroids == centroids).all()
        except RecipeError as error:
            assert "bad.npz" in str(error)
            refused += 1
    assert refused > 30


def test_the_kinds_all_run_quickly_and_often():
    assert len(KINDS) == QUICK and ALL == 11 * QUICK


@pytest.mark.parametrize("name", ["config.yaml", "meta.yaml"])
def test_python_tags_bombs_and_loops_are_refused_before_anything_is_written(
    good, tmp_path, name
):
    canary = tmp_path / "canary"
    for text, reason in (
        (f"x: !!python/object/apply:os.system ['touch {canary}']\n", "not valid YAML"),
        (mutations.BOMB, "aliases expand"),
        ("loop: &a [*a]\n", "aliases expand"),
        ("deep: " + "[" * 5000 + "]" * 5000 + "\n", "not valid YAML"),
    ):
        changed = good.members[name].decode() + text
        path = _zip(tmp_path / "m.zip", (good.members | {name: changed}).items())
        with pytest.raises(RecipeError, match=f"{name}: .*{reason}"):
            unpack_model(path, tmp_path / "cache")
        assert not list((tmp_path / "cache").glob("*/.complete"))
    assert not canary.exists()


def test_aliases_of_an_honest_config_are_read(good, tmp_path):
    layers = [[8, 10, 5], *[[8, 3, 2]] * 4, *[[8, 2, 2]] * 2]
    config = yaml.safe_load(good.members["config.yaml"])
    shared = [8, 3, 2]
    config["encoder_conf"]["extractor_conv_layer_config"] = [
        shared if layer == shared else layer for layer in layers
    ]
    text = yaml.safe_dump(config)
    assert "*id001" in text
    path = _zip(tmp_path / "m.zip", (good.members | {"config.yaml": text}).items())
    assert same(states_of(espnet2_lamer.load_model(path)), good.expected)


def test_a_zip_does_not_decide_which_other_checkpoint_is_read(good, tmp_path):
    config = yaml.safe_load(good.members["config.yaml"])
    config["encoder_conf"]["base"] = "someone/else"
    members = good.members | {"config.yaml": yaml.safe_dump(config)}
    path = _zip(tmp_path / "m.zip", members.items())
    with pytest.raises(
        RecipeError, match="encoder_conf.base: found 'someone/else', ex"
    ):
        espnet2_lamer.load_model(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("encoder_embed_dim", 60000),
        ("encoder_ff_interm_features", 60000),
        ("encoder_num_layers", 200),
        ("encoder_num_layers", 10**9),
        ("encoder_pos_conv_kernel", 60000),
        ("final_dim", 10**9),
        ("lamer", {"allocation": 10**8, "rank": 2, "balance": "bias"}),
        ("lamer", {"allocation": "2,4", "rank": 10**9, "balance": "bias"}),
        ("extractor_conv_layer_config", [[60000, 60000, 5]] * 256),
    ],
)
def test_sizes_in_a_config_allocate_nothing(good, tmp_path, key, value):
    config = yaml.safe_load(good.members["config.yaml"])
    config["encoder_conf"][key] = value
    members = good.members | {"config.yaml": yaml.safe_dump(config)}
    path = _zip(tmp_path / "m.zip", members.items())
    started = time.monotonic()
    with pytest.raises(RecipeError, match="m.zip"):
        espnet2_lamer.load_model(path)
    assert time.monotonic() - started < 10


def test_espnets_own_zip_is_checked_unpacked_and_loaded_as_espnet_does(
    good, tmp_path, monkeypatch
):
    from espnet2.main_funcs.pack_funcs import pack, unpack

    exp = tmp_path / "work" / "exp" / "ssl"
    exp.mkdir(parents=True)
    for name in ("config.yaml", "model.pth"):
        (exp / name).write_bytes(good.members[name])
    (exp / "images").mkdir()
    (exp / "images" / "loss.png").write_bytes(b"png")
    (exp / "RESULTS.md").write_text("# RESULTS\n")
    (exp / "5epoch.pth").symlink_to("model.pth")
    config = yaml.safe_load((exp / "config.yaml").read_text())
    config["note"] = ["exp/ssl/RESULTS.md", {"deep": "exp/ssl/images/loss.png"}]
    (exp / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path / "work")
    pack(
        files={"ssl_model_file": "exp/ssl/5epoch.pth"},
        yaml_files={"ssl_train_config": "exp/ssl/config.yaml"},
        option=["exp/ssl/RESULTS.md", "exp/ssl/images"],
        outpath=tmp_path / "espnets.zip",
    )
    ours = unpack_model(tmp_path / "espnets.zip", tmp_path / "ours")
    top = Path(ours["ssl_train_config"]).parents[2]
    theirs = unpack(tmp_path / "espnets.zip", top.with_name("theirs"), use_cache=False)
    assert {k: str(Path(v).relative_to(top)) for k, v in ours.items()} == {
        k: str(Path(v).relative_to(top.with_name("theirs"))) for k, v in theirs.items()
    }

    def content(folder):
        return {
            file.relative_to(folder): file.read_bytes().replace(
                str(folder).encode(), b""
            )
            for file in folder.rglob("*")
            if file.is_file() and file.name != ".complete"
        }

    assert content(top) == content(top.with_name("theirs"))
    model = espnet2_lamer.load_model(tmp_path / "espnets.zip")
    assert same(states_of(model), good.expected)
