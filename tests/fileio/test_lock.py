"""Exclusive work on a path, by real processes that are really killed."""

import multiprocessing
import os
import signal
import time

from espnet2_lamer.fileio.atomic import exclusive


def _hold(path, entered, seconds):
    with exclusive(path):
        entered.set()
        time.sleep(seconds)
        (path / "done").write_text("first")


def _start(path, seconds):
    context = multiprocessing.get_context("fork")
    entered = context.Event()
    process = context.Process(target=_hold, args=(path, entered, seconds))
    process.start()
    assert entered.wait(10)
    return process


def test_the_second_waits_for_the_first_and_says_so(tmp_path, caplog):
    path = tmp_path / "exp" / "head"
    path.mkdir(parents=True)
    process = _start(path, 0.5)
    with caplog.at_level("INFO"), exclusive(path):
        assert (path / "done").read_text() == "first"
    process.join()
    assert f"{path}: another process works there" in caplog.text


def test_the_lock_of_a_killed_process_is_free(tmp_path, caplog):
    path = tmp_path / "head"
    process = _start(path, 60)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    started = time.monotonic()
    with caplog.at_level("INFO"), exclusive(path):
        assert time.monotonic() - started < 10
    assert "another process" not in caplog.text


def test_the_path_itself_may_be_moved_while_its_lock_is_held(tmp_path):
    path = tmp_path / "head"
    path.mkdir()
    with exclusive(path):
        path.rename(tmp_path / "head.old")
    with exclusive(path):
        assert not path.exists()
