"""One repository, one commit, nothing without a token; recorded, never sent."""

import zipfile
from pathlib import Path

import huggingface_hub
import pytest
import yaml

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.export.upload import repository_files, upload_files
from espnet2_lamer.fileio.archive import write_archive

MEMBERS = {
    "meta.yaml": yaml.safe_dump(
        {
            "files": {"ssl_model_file": "model.pth"},
            "yaml_files": {"ssl_train_config": "config.yaml"},
        }
    ).encode(),
    "config.yaml": b"encoder: x\n",
    "model.pth": b"weights",
    "README.md": b"# card\n",
}


class Recorder:
    """Stands in for ``huggingface_hub.HfApi``."""

    calls: list = []
    fails = None

    def create_repo(self, repo, **options):
        self.calls.append(("create_repo", repo, options))
        if self.fails:
            raise self.fails

    def create_commit(self, repo, operations, *, commit_message):
        content = {}
        for operation in operations:
            with operation.as_file() as handle:
                content[operation.path_in_repo] = handle.read()
        self.calls.append(("create_commit", repo, content))


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(Recorder, "calls", [])
    monkeypatch.setattr(Recorder, "fails", None)
    monkeypatch.setattr(huggingface_hub, "HfApi", Recorder)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return Recorder


@pytest.fixture
def packages(tmp_path):
    """A pretrained model, a head on it, its adapter file, and a directory."""
    write_archive(tmp_path / "ssl.zip", MEMBERS)
    write_archive(tmp_path / "asr.zip", MEMBERS)
    (tmp_path / "ssl.safetensors").write_bytes(b"adapter")
    (tmp_path / "ssl_hf" / "code").mkdir(parents=True)
    (tmp_path / "ssl_hf" / "config.json").write_bytes(b"{}")
    (tmp_path / "ssl_hf" / "code" / "model.py").write_bytes(b"pass\n")
    return {
        "ssl": tmp_path / "ssl.zip",
        "asr": tmp_path / "asr.zip",
        "ssl.adapter": tmp_path / "ssl.safetensors",
        "ssl_hf": tmp_path / "ssl_hf",
    }


EXPECTED = {
    *MEMBERS,
    *("asr.zip", "ssl.safetensors", "ssl_hf/config.json", "ssl_hf/code/model.py"),
}


def test_the_pretrained_models_files_lie_at_the_top(packages, recorder):
    upload_files("me/lamer", repository_files(packages, "ssl"))
    (create, repo, options), (commit, where, content) = recorder.calls
    assert (create, commit) == ("create_repo", "create_commit")
    assert repo == where == "me/lamer" and options["exist_ok"]
    assert content.keys() == EXPECTED
    for name, value in MEMBERS.items():
        assert content[name] == value
    assert content["asr.zip"] == packages["asr"].read_bytes()
    assert content["ssl.safetensors"] == b"adapter"


def test_espnets_model_downloader_takes_such_a_repository(
    packages, recorder, tmp_path, monkeypatch
):
    from espnet_model_zoo import downloader

    upload_files("me/lamer", repository_files(packages, "ssl"))
    clone = tmp_path / "clone"
    for name, content in recorder.calls[-1][2].items():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes(content)
    # What it downloads a repository with.
    monkeypatch.setattr(downloader, "snapshot_download", lambda *a, **k: str(clone))
    files = downloader.ModelDownloader(tmp_path / "zoo").download_and_unpack("me/lamer")
    # From 0.1.11 on its paths are resolved in a copy.
    config = Path(files.pop("ssl_train_config"))
    assert config.parent == clone
    assert config.name in ("config.yaml", "config.resolved.yaml")
    assert yaml.safe_load(config.read_text()) == {"encoder": "x"}
    assert files == {"ssl_model_file": str(clone / "model.pth")}


def test_without_a_package_in_front_every_zip_stays_whole(packages, recorder):
    files = repository_files({"asr": packages["asr"]}, "")
    assert files == {"asr.zip": packages["asr"]}


def test_a_dry_run_says_files_sizes_and_repository_and_sends_nothing(
    packages, recorder, caplog, monkeypatch
):
    monkeypatch.delenv("HF_TOKEN")
    caplog.set_level("INFO")
    upload_files("me/lamer", repository_files(packages, "ssl"), dry_run=True)
    assert not recorder.calls
    assert caplog.messages[0].startswith("would upload to me/lamer: 8 files, ")
    assert len(caplog.messages) == 1 + len(EXPECTED)
    with zipfile.ZipFile(packages["ssl"]) as archive:
        size = archive.getinfo("model.pth").file_size
    assert f"  model.pth ({size / 1e6:.2f} MB)" in caplog.messages
    caplog.clear()
    upload_files("", {"asr.zip": packages["asr"]}, dry_run=True)
    assert "--hf_repo is empty" in caplog.messages[0] and not recorder.calls


def test_nothing_happens_without_a_repository(packages, recorder, caplog):
    caplog.set_level("INFO")
    upload_files("", repository_files(packages, "ssl"))
    assert not recorder.calls
    assert caplog.messages == ["no --hf_repo: nothing is uploaded"]


def test_without_a_token_the_error_says_how_to_give_one(
    packages, recorder, monkeypatch
):
    monkeypatch.delenv("HF_TOKEN")
    message = "--hf_repo me/lamer: found no token.*set HF_TOKEN, or log in"
    with pytest.raises(RecipeError, match=message):
        upload_files("me/lamer", repository_files(packages, "ssl"))
    assert not recorder.calls


@pytest.mark.parametrize("repo", ["a/b/c", "me/la mer", "https://hf.co/me/x", "-x"])
def test_an_impossible_repository_is_named(packages, recorder, repo):
    with pytest.raises(RecipeError, match="--hf_repo: found .*, expected user/name"):
        upload_files(repo, repository_files(packages, "ssl"))
    assert not recorder.calls


def test_what_the_hub_refuses_is_told_without_the_token(packages, recorder):
    recorder.fails = PermissionError("403: no rights")
    with pytest.raises(RecipeError, match="403: no rights.*upload again"):
        upload_files("me/lamer", repository_files(packages, "ssl"))
    assert len(recorder.calls) == 1


def test_a_missing_package_is_named_before_anything_is_made(
    packages, recorder, tmp_path
):
    files = {"asr.zip": tmp_path / "none.zip"}
    with pytest.raises(RecipeError, match="none.zip: file not found; pack the model"):
        upload_files("me/lamer", files)
    assert not recorder.calls
