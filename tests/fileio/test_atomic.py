"""What killed processes left half-written goes away, and nothing else does."""

import os
import re
import subprocess
import sys
import time

import pytest

from espnet2_lamer.fileio import atomic
from espnet2_lamer.fileio.atomic import atomic_dir, atomic_path, write_text
from tests.killed import killed_in


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("writer", [atomic_path, atomic_dir])
def test_what_killed_processes_left_is_removed_by_the_next_write(tmp_path, writer):
    left = killed_in(writer, tmp_path / "model")
    assert names(tmp_path) == [left.name]
    write_text(tmp_path / "other", "")
    assert names(tmp_path) == ["other"]


def test_another_process_removes_it_too_and_says_so(tmp_path):
    left = killed_in(atomic_path, tmp_path / "model.pth")
    program = (
        "import logging, sys; logging.basicConfig(level=20);"
        "from espnet2_lamer.fileio.atomic import write_text;"
        "write_text(sys.argv[1], '')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "other"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{left}: removed, a killed process left it" in done.stderr
    assert names(tmp_path) == ["other"]


def test_a_living_process_keeps_its_half_written_files(tmp_path):
    with atomic_path(tmp_path / "file") as temporary, atomic_dir(tmp_path / "folder"):
        temporary.write_text("half")
        atomic._remove_leftovers.cache_clear()
        write_text(tmp_path / "other", "")
    assert names(tmp_path) == ["file", "folder", "other"]


def elsewhere(path):
    """The same file, as a process of another machine or container would name it."""
    place = re.fullmatch(r"(.*)\.[0-9a-f]{8}(\.\d+\.[0-9a-f]{8}\.tmp)", path.name)
    return path.rename(path.with_name(f"{place[1]}.01234567{place[2]}"))


def test_files_of_other_machines_stay_for_a_week(tmp_path):
    left = elsewhere(killed_in(atomic_path, tmp_path / "file"))
    write_text(tmp_path / "other", "")
    assert left.exists()
    old = time.time() - 8 * 24 * 3600
    os.utime(left, (old, old))
    atomic._remove_leftovers.cache_clear()
    write_text(tmp_path / "other", "")
    assert names(tmp_path) == ["other"]


def test_files_of_the_user_are_left_alone(tmp_path):
    mine = [".notes.tmp", "a.1.tmp", ".x.12345678.99999999.tmp", ".hidden", "y.tmp"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    write_text(tmp_path / "other", "")
    assert names(tmp_path) == sorted([*mine, "other"])


def test_a_folder_is_looked_through_once(tmp_path, monkeypatch):
    looked = []
    real = os.scandir
    monkeypatch.setattr(
        atomic.os, "scandir", lambda path: looked.append(path) or real(path)
    )
    for number in range(100):
        write_text(tmp_path / str(number), "")
    assert looked == [str(tmp_path)]
