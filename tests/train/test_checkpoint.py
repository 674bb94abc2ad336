"""The checkpoint store: whole files or none, the last two, damage passed over."""

import contextlib
import hashlib
import logging
import os

import pytest
import torch

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio import checksum
from espnet2_lamer.fileio.atomic import atomic_path
from espnet2_lamer.train.checkpoint import CheckpointStore
from tests.full_disk import KINDS, REASONS, full, mounted
from tests.killed import killed_in


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


def gone(path):
    path.unlink()


def gone_with_its_checksum(path):
    unfinished(path)
    path.unlink()


def dangling(path):
    path.rename(path.with_name("moved"))
    path.symlink_to("nowhere")


def folder(path):
    path.unlink()
    path.mkdir()
    (path / "mine").write_text("of the user")


def link_to_itself(path):
    path.unlink()
    path.symlink_to(path.name)


DAMAGE = {
    "cut": (cut, "its checksum differs"),
    "one bit": (flip, "its checksum differs"),
    "no checksum": (unfinished, "no checksum beside it"),
    "empty checksum": (empty_checksum, "no checksum beside it"),
    "gone": (gone, "cannot be read: No such file or directory"),
    "gone with its checksum": (gone_with_its_checksum, "no checksum beside it"),
    "a dangling link": (dangling, "cannot be read: No such file or directory"),
    "a link to itself": (link_to_itself, "cannot be read: Too many levels of symbo"),
    "a folder": (folder, "cannot be read: Is a directory"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(store, kind, caplog):
    damage, reason = DAMAGE[kind]
    latest = store.paths()[0]
    damage(latest)
    with caplog.at_level(logging.WARNING):
        assert store.load()["updates"] == 2
    (message,) = caplog.messages
    assert message.startswith(f"{latest}: damaged or not finished ({reason}")
    assert message.endswith("); using the one before it")


@pytest.mark.parametrize("kind", DAMAGE)
def test_after_damage_training_goes_on_and_keeps_two_whole_ones(store, kind):
    latest = store.paths()[0]
    DAMAGE[kind][0](latest)
    assert store.load()["updates"] == 2
    # Damage must not count among the kept ones when the next is damaged as well.
    store.save(state(3), 3)
    assert store.load()["updates"] == 3
    flip(latest)
    assert store.load()["updates"] == 2
    store.save(state(3), 3)
    store.save(state(4), 4)
    assert [path.name for path in store.paths()] == [
        "update_00000004.pth",
        "update_00000003.pth",
    ]
    if kind == "a folder":
        (moved,) = store.directory.glob("*.old-not-a-checkpoint")
        assert (moved / "mine").read_text() == "of the user"


def test_an_unreadable_checkpoint_is_named_and_the_one_before_it_used(
    store, caplog, monkeypatch
):
    latest = store.paths()[0]
    latest.chmod(0)
    # Permissions do not bind root: look as nobody, who may not even come here from /.
    monkeypatch.chdir(store.directory)
    (store.directory.parent).chmod(0o755)
    before = os.geteuid(), os.getegid()
    if before[0] == 0:
        os.setegid(65534)
        os.seteuid(65534)
    try:
        assert CheckpointStore(".").load()["updates"] == 2
    finally:
        os.seteuid(before[0])
        os.setegid(before[1])
    assert f"{latest.name}: damaged or not finished (cannot be read: Perm" in (
        caplog.text
    )


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
    refused = "update_00000009.pth: damaged or not finished (Trying to load unsupported"
    assert refused in caplog.text
    assert "weights_only" not in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_full_disk_the_earlier_ones_stay_and_nothing_else(kind, tmp_path):
    with contextlib.ExitStack() as stack:
        if kind == "small disk":
            stack.enter_context(mounted(tmp_path / "disk"))
        store = CheckpointStore(tmp_path / "disk" / "checkpoints")
        for number in (1, 2, 3):
            store.save(state(number), number)
        before = names(store)
        large = {"weight": torch.zeros(100_000)}
        with (
            full(kind, tmp_path / "disk", 2**15),
            pytest.raises(RecipeError, match=REASONS[kind]) as raised,
        ):
            store.save(large, 4)
        path = store.directory / "update_00000004.pth"
        expected = f"checkpoint of update 4 cannot be written: {path}: {REASONS[kind]}"
        assert expected in str(raised.value)
        assert str(raised.value).endswith("; update_00000003.pth is whole")
        assert names(store) == before
        assert store.load()["updates"] == 3
        store.save(large, 4)
        assert torch.equal(store.load()["weight"], large["weight"])


def test_a_checkpoint_that_replaces_its_namesake_is_never_taken_for_the_old_one(
    store, monkeypatch
):
    def interrupted(path, text):
        raise KeyboardInterrupt

    monkeypatch.setattr(checksum, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.save(state(3) | {"updates": "half done"}, 3)
    assert store.load()["updates"] == 2


def test_what_killed_processes_left_is_removed_and_living_ones_keep_theirs(store):
    path = store.directory / "update_00000003.pth"
    with atomic_path(path) as alive:
        alive.write_bytes(b"half")
        dead = killed_in(atomic_path, path)
        store.save(state(4), 4)
        assert not dead.exists() and alive.exists()
        alive.write_bytes(path.read_bytes())
    assert [path.name for path in store.paths()] == [
        "update_00000004.pth",
        "update_00000003.pth",
    ]


def test_other_files_of_the_folder_are_left_alone(store):
    (store.directory / "update_notes.txt").write_text("mine")
    for number in (4, 5):
        store.save(state(number), number)
    assert (store.directory / "update_notes.txt").read_text() == "mine"
