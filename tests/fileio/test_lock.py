"""Locks of folders, by real processes that are really killed."""

import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time

import pytest

from espnet2_lamer.fileio import locks
from espnet2_lamer.fileio.locks import WHOLE, Busy, exclusive, working_on


def _hold(path, entered, seconds, shared):
    with exclusive(path, shared=shared):
        entered.set()
        time.sleep(seconds)
        if not shared:
            (path / "done").write_text("first")


def _start(path, seconds, shared=False):
    context = multiprocessing.get_context("fork")
    entered = context.Event()
    process = context.Process(target=_hold, args=(path, entered, seconds, shared))
    process.start()
    assert entered.wait(10)
    return process


def _kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def _file(path):
    return path.with_name(f".{path.name}.lock")


def _take(path, **how):
    with exclusive(path, wait=False, **how):
        return True


def _other_machine(path, **changes):
    """Put a line of another machine into the lock's file."""
    line = {
        "host": "elsewhere",
        "process": os.getpid(),
        "command": "./run.sh",
        "since": "2026-01-01 00:00:00",
        "job": ["", "", ""],
        "shared": False,
    }
    _file(path).write_text(json.dumps(line | changes) + "\n")


def test_the_second_waits_for_the_first_and_says_for_whom(tmp_path, caplog):
    path = tmp_path / "exp" / "head"
    path.mkdir(parents=True)
    process = _start(path, 0.5)
    with caplog.at_level("INFO"), exclusive(path):
        assert (path / "done").read_text() == "first"
    process.join()
    assert f"{path}: another process works there" in caplog.text
    assert f"process {process.pid} on {platform.node()}, since 20" in caplog.text


def test_one_that_does_not_wait_names_who_holds_it(tmp_path):
    process = _start(tmp_path, 60)
    with pytest.raises(Busy) as error:
        _take(tmp_path)
    command = " ".join(sys.orig_argv)[:20]
    for part in (str(process.pid), platform.node(), command, "wait for its end"):
        assert part in str(error.value)
    _kill(process)
    assert _take(tmp_path)


def test_the_lock_of_a_killed_process_is_taken_over_with_a_line(tmp_path, caplog):
    path = tmp_path / "head"
    process = _start(path, 60)
    _kill(process)
    started = time.monotonic()
    with caplog.at_level("INFO"), exclusive(path):
        assert time.monotonic() - started < 10
    assert "another process" not in caplog.text
    assert f"taken over from a killed process: process {process.pid}" in caplog.text
    caplog.clear()
    assert _take(path) and caplog.text == "" and _file(path).read_text() == ""


def test_one_of_another_machine_is_left_alone_and_the_message_helps(tmp_path):
    path = tmp_path / "exp"
    _other_machine(path)
    with pytest.raises(Busy, match="on elsewhere, since 2026") as error:
        _take(path)
    command = str(error.value).rpartition("on that machine: ")[2]
    subprocess.run(command, shell=True, check=True)
    assert _take(path)


def test_a_job_that_slurm_starts_again_elsewhere_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "exp"
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    _other_machine(path, job=["17", "", ""])
    with pytest.raises(Busy):
        _take(path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert _take(path)


def test_nodes_of_one_step_hold_a_lock_together(tmp_path, monkeypatch):
    for name, value in (("JOB_ID", 17), ("STEP_ID", 0), ("STEP_NUM_NODES", 2)):
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    process = _start(tmp_path, 60)
    assert _take(tmp_path)
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    with pytest.raises(Busy):
        _take(tmp_path)
    _kill(process)


def test_shared_holders_keep_out_one_that_wants_it_alone(tmp_path, caplog):
    first, second = _start(tmp_path, 60, True), _start(tmp_path, 60, True)
    assert _take(tmp_path, shared=True)
    for process in (first, second):
        with pytest.raises(Busy, match=str(process.pid)):
            _take(tmp_path)
        _kill(process)
    assert _take(tmp_path)
    assert caplog.text.count("taken over") == 2


def test_shared_holders_wait_for_one_that_has_it_alone(tmp_path):
    process = _start(tmp_path, 60)
    with pytest.raises(Busy, match=str(process.pid)):
        _take(tmp_path, shared=True)
    _kill(process)
    assert _take(tmp_path, shared=True)


def test_a_process_may_take_its_lock_again_but_one_that_it_forks_may_not(tmp_path):
    with exclusive(tmp_path), exclusive(tmp_path, wait=False):
        pid = os.fork()
        if not pid:
            try:
                _take(tmp_path)
            except Busy:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        # The child's end did not free it.
        with pytest.raises(Busy):
            subprocess_take(tmp_path)
    assert _take(tmp_path)


def subprocess_take(path):
    """Take a lock in a process of its own."""
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        return pool.apply(_take, (path,))


def test_one_lock_however_the_folder_is_called(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    process = _start(tmp_path / "real" / "exp", 60)
    with pytest.raises(Busy):
        _take(tmp_path / "link" / "exp")
    _kill(process)


def test_the_path_itself_may_be_moved_while_its_lock_is_held(tmp_path):
    path = tmp_path / "head"
    path.mkdir()
    with exclusive(path):
        path.rename(tmp_path / "head.old")
    with exclusive(path):
        assert not path.exists()


def test_a_command_keeps_out_of_a_folder_in_which_a_recipe_works(tmp_path):
    output = tmp_path / "dump" / "raw" / "text.km"
    with working_on(output):
        pass
    process = _start(tmp_path / "dump" / WHOLE, 60)
    with pytest.raises(Busy, match=f"{tmp_path / 'dump'}: another"):
        with working_on(output):
            pass
    _kill(process)
    with working_on(output), pytest.raises(Busy):
        subprocess_take(tmp_path / "dump" / WHOLE)


def test_a_file_system_without_locks_is_watched_by_what_is_written(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(locks, "_flock", lambda descriptor, shared: None)
    process = _start(tmp_path, 60)
    with pytest.raises(Busy, match=str(process.pid)):
        _take(tmp_path)
    _kill(process)
    assert _take(tmp_path)


def test_readers_of_a_folder_that_they_may_not_write_are_not_stopped(
    tmp_path, monkeypatch
):
    def refuse(*_):
        raise PermissionError(13, "no")

    monkeypatch.setattr(locks.os, "open", refuse)
    assert _take(tmp_path / "exp", shared=True)
    with pytest.raises(PermissionError):
        _take(tmp_path / "exp")
