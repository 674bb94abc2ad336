"""A file that changed since it was written is refused; one of others passes."""

import subprocess

import pytest
import torch

from espnet2_lamer.convert.state import read_state
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.checksum import check_file, checked_file, remove_file
from tests.damage import flip_bit


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "3epoch.pth"
    with checked_file(path) as stream:
        torch.save({"weight": torch.arange(1000.0)}, stream)
    return path


def test_twenty_of_twenty_flipped_bits_are_refused_through_any_link(model):
    link = model.with_name("valid.loss.best.pth")
    link.symlink_to(model.name)
    whole = model.read_bytes()
    for seed in range(20):
        flip_bit(model, seed)
        with pytest.raises(RecipeError, match=f"{link}: damaged since it was writ"):
            read_state(link)
        model.write_bytes(whole)
    assert torch.equal(read_state(link)["weight"], torch.arange(1000.0))


def test_the_checksum_is_what_sha256sum_reads(model):
    subprocess.run(
        ["sha256sum", "-c", f"{model.name}.sha256"], cwd=model.parent, check=True
    )


def test_the_message_names_the_file_and_what_to_do(model):
    flip_bit(model, 0)
    with pytest.raises(RecipeError) as caught:
        check_file(model)
    assert str(caught.value).startswith(f"{model}: damaged since it was written (its")
    assert "3epoch.pth.sha256); restore it from a copy" in str(caught.value)


def test_files_without_a_checksum_pass(model):
    flip_bit(model, 0)
    model.with_name(f"{model.name}.sha256").unlink()
    check_file(model)


def test_an_empty_checksum_is_no_excuse(model):
    model.with_name(f"{model.name}.sha256").write_text("")
    with pytest.raises(RecipeError, match="no checksum"):
        check_file(model)


def test_a_file_that_is_replaced_has_no_checksum_for_a_moment(model, monkeypatch):
    from espnet2_lamer.fileio import checksum

    def interrupted(path, text):
        raise KeyboardInterrupt

    monkeypatch.setattr(checksum, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt), checked_file(model) as stream:
        torch.save({"weight": torch.zeros(3)}, stream)
    assert torch.equal(read_state(model)["weight"], torch.zeros(3))


def test_the_same_content_gives_the_same_bytes_under_any_name(model):
    other = model.with_name("4epoch.pth")
    with checked_file(other) as stream:
        torch.save({"weight": torch.arange(1000.0)}, stream)
    assert other.read_bytes() == model.read_bytes()


def test_a_removed_file_leaves_no_checksum(model):
    remove_file(model)
    assert list(model.parent.iterdir()) == []
