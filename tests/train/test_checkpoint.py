"""The checkpoint store: whole files or none, the last two, damage passed over."""

import hashlib
import logging
import os
import subprocess
import sys

import pytest
import torch

import espnet2_lamer.train.checkpoint as module
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.train.checkpoint import CheckpointStore


def state(number):
    return {
        "updates": number,
        "model": {"weight": torch.full((1000,), float(number))},
        "names": ["a", None, 0.5],
    }


@pytest.fixture
def store(tmp_path):
    """A store that was given the checkpoints of updates 1, 2 and 3."""
    store = CheckpointStore(tmp_path / "checkpoints")
    for number in (1, 2, 3):
        store.save(state(number), number)
    return store


def names(store):
    return sorted(path.name for path in store.directory.iterdir())


def test_what_is_loaded_is_what_was_saved(store):
    found = store.load()
    assert found["updates"] == 3 and found["names"] == ["a", None, 0.5]
    assert torch.equal(found["model"]["weight"], torch.full((1000,), 3.0))


def test_the_last_two_are_kept_each_with_the_checksum_of_its_bytes(store):
    kept = ["update_00000002.pth", "update_00000003.pth"]
    assert names(store) == sorted(kept + [f"{name}.sha256" for name in kept])
    for name in kept:
        digest = hashlib.sha256((store.directory / name).read_bytes()).hexdigest()
        # The format of sha256sum -c.
        line = (store.directory / f"{name}.sha256").read_text()
        assert line == f"{digest}  {name}\n"


def test_numbers_decide_what_is_latest_beyond_eight_digits(tmp_path):
    store = CheckpointStore(tmp_path)
    for number in (99_999_999, 100_000_000):
        store.save(state(number), number)
    assert store.load()["updates"] == 100_000_000


def test_a_store_that_was_never_written_is_empty(tmp_path):
    assert CheckpointStore(tmp_path / "none").load() is None
    assert not (tmp_path / "none").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def unfinished(path):
    path.with_name(f"{path.name}.sha256").unlink()


def empty_checksum(path):
    path.with_name(f"{path.name}.sha256").write_text("")


DAMAGE = {
    "cut": (cut, "its checksum differs"),
    "one bit": (flip, "its checksum differs"),
    "no checksum": (unfinished, "no checksum beside it"),
    "empty checksum": (empty_checksum, "no checksum beside it"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(store, kind, caplog):
    damage, reason = DAMAGE[kind]
    latest = store.paths()[0]
    damage(latest)
    with caplog.at_level(logging.WARNING):
        assert store.load()["updates"] == 2
    message = f"{latest}: damaged or not finished ({reason}); using the one before it"
    assert caplog.messages == [message]


def test_when_all_are_damaged_nothing_is_trained_anew_by_mistake(store):
    for path in store.paths():
        flip(path)
    with pytest.raises(RecipeError, match="all 2 checkpoints are damaged; remove"):
        store.load()


class Evil:
    def __reduce__(self):
        return os.system, ("exit 1",)


def test_objects_in_a_checkpoint_are_not_run(store, caplog):
    path = store.directory / "update_00000009.pth"
    torch.save({"model": Evil()}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n")
    assert store.load()["updates"] == 3
    assert "update_00000009.pth: damaged or not finished (Weights only" in caplog.text


def test_a_failed_write_leaves_the_earlier_ones_and_nothing_else(store, monkeypatch):
    before = names(store)

    def full(value, stream):
        stream.write(b"as much as there is room for")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.torch, "save", full)
    message = r"00000004.pth: the checkpoint of update 4 cannot be written \(\[Errno 28"
    with pytest.raises(RecipeError, match=message) as raised:
        store.save(state(4), 4)
    assert "update_00000003.pth is whole: make room and run again" in str(raised.value)
    assert names(store) == before


def test_a_checkpoint_that_replaces_its_namesake_is_never_taken_for_the_old_one(
    store, monkeypatch
):
    def interrupted(path, text):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.save(state(3) | {"updates": "half done"}, 3)
    assert store.load()["updates"] == 2


def test_what_killed_processes_left_is_removed_and_living_ones_keep_theirs(store):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    dead, alive = (
        store.directory / f".update_00000003.pth.{pid}.0123abcd.tmp"
        for pid in (done.pid, os.getpid())
    )
    for path in (dead, alive):
        path.write_bytes(b"half")
    store.save(state(4), 4)
    assert not dead.exists() and alive.exists()
    assert [path.name for path in store.paths()] == [
        "update_00000004.pth",
        "update_00000003.pth",
    ]


def test_other_files_of_the_folder_are_left_alone(store):
    (store.directory / "update_notes.txt").write_text("mine")
    for number in (4, 5):
        store.save(state(number), number)
    assert (store.directory / "update_notes.txt").read_text() == "mine"
