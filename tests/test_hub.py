"""``load_model("user/repo")``: fetched once, exact, then without a network."""

import logging
import shutil

import pytest
import yaml

import espnet2_lamer
from espnet2_lamer.bin.export import main as export
from espnet2_lamer.convert.hub import choose
from espnet2_lamer.convert.huggingface import save_huggingface
from espnet2_lamer.errors import RecipeError
from tests.export.family import BIAS
from tests.export.family import build as build_family
from tests.export.tiny import same, states_of, write_base, write_experiment
from tests.fake_hub import fake_hub

LANGS = ["cmn", "eng", "yue"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A base and every form of one model, each as a repository."""
    folder = tmp_path_factory.mktemp("hub")
    base = write_base(folder / "base")
    write_experiment(folder / "exp", base, balance="bias")
    config = folder / "exp" / "config.yaml"
    settings = yaml.safe_load(config.read_text()) | {"langs": LANGS}
    config.write_text(yaml.safe_dump(settings))

    def write(kind, output, *options):
        export(
            [f"--kind={kind}", f"--experiment={folder / 'exp'}", f"--output={output}"]
            + [*options]
        )

    write("zoo", folder / "zip" / "ssl_lamer.zip")
    write("hf", folder / "hf")
    write("adapter", folder / "adapter" / "a.safetensors", "--base_name=someone/base")
    shutil.unpack_archive(folder / "zip" / "ssl_lamer.zip", folder / "stage14")
    shutil.copy(folder / "adapter" / "a.safetensors", folder / "stage14")
    (folder / "stage14" / "asr_eng.zip").write_bytes(b"a head, not asked for")
    return folder


@pytest.fixture
def hub(root, tmp_path, monkeypatch):
    """A hub with all of them, and an empty cache."""
    names = ("zip", "hf", "adapter", "stage14")
    repositories = {f"me/{name}": root / name for name in names}
    repositories["someone/base"] = root / "base"
    with fake_hub(repositories, tmp_path / "cache", monkeypatch) as found:
        yield found


@pytest.fixture(scope="module")
def expected(root):
    """The experiment's own states."""
    return states_of(espnet2_lamer.load_model(root / "exp"))


@pytest.mark.parametrize("name", ["zip", "hf", "adapter", "stage14"])
def test_every_form_of_a_model_loads_by_its_id_and_then_offline(
    hub, expected, name, monkeypatch
):
    from huggingface_hub import constants

    model = espnet2_lamer.load_model(f"me/{name}")
    assert same(states_of(model), expected)
    assert model.languages == tuple(LANGS)
    assert "me/stage14/asr_eng.zip" not in hub.fetched
    assert not any(file.endswith(".py") for file in hub.fetched)
    fetched = len(hub.fetched)
    again = espnet2_lamer.load_model(f"me/{name}")
    assert same(states_of(again), expected) and len(hub.fetched) == fetched
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert same(states_of(espnet2_lamer.load_model(f"me/{name}")), expected)
    assert not hub.asked


def test_the_base_of_a_hub_adapter_is_fetched_and_that_is_said(hub, caplog):
    with caplog.at_level(logging.WARNING):
        espnet2_lamer.load_model("me/adapter")
    assert "its base is someone/base, fetched once" in caplog.text
    assert "someone/base/model.safetensors" in hub.fetched
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        espnet2_lamer.load_model("me/adapter")
    assert "fetched once" not in caplog.text


def test_a_local_adapter_fetches_nothing(hub, root):
    with pytest.raises(RecipeError, match="'someone/base' is not found here"):
        espnet2_lamer.load_model(root / "adapter" / "a.safetensors")
    assert not hub.asked


def test_a_base_that_is_another_now_is_refused(hub, root, tmp_path):
    hub.repositories["someone/base"] = write_base(tmp_path / "other", seed=1)
    with pytest.raises(RecipeError, match="was trained on 'someone/base'"):
        espnet2_lamer.load_model("me/adapter")


@pytest.mark.parametrize("name", ["/etc/x", "../x", "HUBERT_BASE", "a/b/c", "base"])
def test_only_a_plain_id_is_fetched_for_an_adapter(root, hub, tmp_path, name):
    output = tmp_path / "repo" / "a.safetensors"
    settings = [f"--experiment={root / 'exp'}", f"--output={output}"]
    export(["--kind=adapter", f"--base_name={name}", *settings])
    hub.repositories["me/repo"] = output.parent
    with pytest.raises(RecipeError, match="not a public name|not found here"):
        espnet2_lamer.load_model("me/repo")
    assert hub.fetched == ["me/repo/a.safetensors"]


def test_offline_and_not_cached_names_repository_cache_and_what_to_do(
    hub, tmp_path, monkeypatch
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError) as error:
        espnet2_lamer.load_model("me/zip")
    for part in ("me/zip", str(tmp_path / "cache"), "HF_HUB_OFFLINE", "hf download"):
        assert part in str(error.value)


def test_a_cache_laid_out_by_others_is_enough(root, expected, tmp_path, monkeypatch):
    from huggingface_hub import constants

    commit = "0123456789" * 4
    repository = tmp_path / "models--me--lamer"
    shutil.copytree(root / "hf", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for revision in (None, commit):
        model = espnet2_lamer.load_model("me/lamer", revision=revision)
        assert same(states_of(model), expected)
    with pytest.raises(RecipeError, match="revision v2 is not whole in the cache"):
        espnet2_lamer.load_model("me/lamer", revision="v2")


def test_a_hub_that_does_not_answer_leaves_the_cache(
    hub, expected, caplog, monkeypatch
):
    import huggingface_hub

    espnet2_lamer.load_model("me/hf")

    def refuse(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", refuse)
    with caplog.at_level(logging.WARNING):
        model = espnet2_lamer.load_model("me/hf")
    assert "from the cache" in caplog.text and "no route to host" in caplog.text
    assert same(states_of(model), expected)
    with pytest.raises(RecipeError, match="me/zip: .*no route to host"):
        espnet2_lamer.load_model("me/zip")


def test_a_revision_and_a_file_can_be_chosen(hub, root, expected):
    commit = hub.commit("me/stage14")
    model = espnet2_lamer.load_model(
        "me/stage14", revision=commit, file="a.safetensors", base=root / "base"
    )
    assert same(states_of(model), expected)
    assert hub.fetched == ["me/stage14/a.safetensors"]
    with pytest.raises(RecipeError, match="expected a zip or an adapter .*asr_eng.zip"):
        espnet2_lamer.load_model("me/stage14", file="b.zip")
    with pytest.raises(RecipeError, match="me/zip: revision nosuch"):
        espnet2_lamer.load_model("me/zip", revision="nosuch")
    for key in ("revision", "file"):
        with pytest.raises(RecipeError, match=f"{key}: .*no Hugging Face id"):
            espnet2_lamer.load_model(root / "exp", **{key: "x"})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "found no files"),
        (["README.md", "x.pth"], "found README.md, x.pth; expected config.json"),
        (["config.json"], "expected config.json with model.safetensors"),
        (["a.zip", "b.zip"], "found a.zip, b.zip; name one"),
        (["ssl_a.zip", "ssl_b.zip"], "name one: load_model"),
        (["a.safetensors", "b.safetensors"], "name one"),
        (["sub/config.json", "sub/model.safetensors"], "found no files"),
    ],
)
def test_a_repository_without_one_model_is_refused(names, message):
    with pytest.raises(RecipeError, match=f"me/x: .*{message}"):
        choose(names, "me/x")


def test_the_files_that_are_fetched_are_those_of_one_model():
    weights = ["config.json", "model.safetensors", "pytorch_model.bin", "x.py"]
    assert choose(weights, "x").files == ["config.json", "model.safetensors"]
    heads = ["asr_a.zip", "ssl_b.zip", "lid.zip"]
    assert choose(heads, "x").files == ["ssl_b.zip"]


SHAPES = {
    "top-2": {"allocation": "2,4", "rank": 2},
    "bias": BIAS,
    "soft": {"allocation": "4", "rank": 3, "top_k": None, "alpha": 6.0},
    "projection": {"allocation": "0,3", "rank": 2, "router": "projection"},
    "lora": {"allocation": 1, "rank": 4},
    "ffn": {"allocation": "2", "rank": 2, "targets": ["ffn"]},
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_directory_for_transformers_is_read_back_exactly(tmp_path, name):
    from espnet2_lamer.export.huggingface import write_huggingface

    upstream = build_family(SHAPES[name], final_norm=False)
    upstream.languages = ("xho",)
    write_huggingface(upstream, tmp_path / "hf")
    loaded = espnet2_lamer.load_model(tmp_path / "hf")
    assert same(states_of(loaded), states_of(upstream))
    assert loaded.languages == ("xho",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": [2]}, "num_experts: found 1 numbers, expected 2"),
        ({"lora_rank": 3}, "does not fit the model"),
        ({"lora_rank": None}, "lamer.rank: found None"),
        ({"lora_targets": ["attention"]}, "lamer.targets"),
        ({"languages": "cmn"}, "languages: found cmn"),
        ({"languages": [1]}, "languages: found"),
    ],
)
def test_a_wrong_config_of_such_a_directory_is_refused(tmp_path, change, message):
    import json

    from espnet2_lamer.export.huggingface import write_huggingface

    write_huggingface(build_family(SHAPES["top-2"]), tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RecipeError, match=message):
        espnet2_lamer.load_model(tmp_path / "hf")


def test_a_plain_hubert_says_that_its_languages_are_not_recorded(tmp_path):
    save_huggingface(build_family().wav2vec2, tmp_path / "hf")
    model = espnet2_lamer.load_model(tmp_path / "hf")
    assert model.languages == () and "languages: not recorded" in repr(model)
