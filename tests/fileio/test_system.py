"""What the system refuses is one line with path and advice; disks are really full."""

import contextlib
import errno
import logging
import os
import shutil
import sys
import zipfile

import kaldiio
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from espnet2_lamer.bin.common import run_main
from espnet2_lamer.data.converting import write_flac
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio import system
from espnet2_lamer.fileio.atomic import append_text, atomic_dir, atomic_path
from espnet2_lamer.fileio.checksum import checked_file
from espnet2_lamer.fileio.picture import new_picture, save_picture
from espnet2_lamer.fileio.system import LogFile, check_space, system_message
from tests.full_disk import KINDS, REASONS, full, mounted

NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 100_000).astype(np.float32)


def archive(path):
    with zipfile.ZipFile(path, "w") as handle, handle.open("noise", "w") as member:
        member.write(NOISE.tobytes())


def array_file(path):
    with open(path, "wb") as handle:
        np.save(handle, NOISE)


def stream(path):
    with open(path, "wb") as handle:
        torch.save({"noise": torch.from_numpy(NOISE)}, handle)


WRITERS = {
    "bytes": lambda path: path.write_bytes(NOISE.tobytes()),
    "text": lambda path: path.write_text("text " * 50_000),
    "libsndfile": lambda path: write_flac(path, NOISE),
    "torch": lambda path: torch.save({"noise": torch.from_numpy(NOISE)}, path),
    "torch, a stream": stream,
    "safetensors": lambda path: save_file({"noise": torch.from_numpy(NOISE)}, path),
    "numpy": array_file,
    "zipfile": archive,
    "kaldiio": lambda path: kaldiio.save_ark(str(path), {"noise": NOISE[:, None]}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_full_disk_every_library_ends_in_one_line_with_the_path(kind, tmp_path):
    disk = tmp_path / "disk"
    with contextlib.ExitStack() as stack:
        if kind == "small disk":
            stack.enter_context(mounted(disk))
        disk.mkdir(exist_ok=True)
        for name, write in WRITERS.items():
            target = disk / "sub" / name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(b"before")
            with (
                full(kind, disk, 2**15),
                pytest.raises(OSError, match=REASONS[kind]) as caught,
                atomic_path(target) as temporary,
            ):
                write(temporary)
            message = system_message(caught.value)
            assert message.startswith(f"{target}: {REASONS[kind]}; "), name
            assert "run the same command again" in message and "\n" not in message
            assert target.read_bytes() == b"before", name
            assert [path.name for path in target.parent.iterdir()] == [name]
            target.unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_checksums_folders_pictures_and_lists_name_what_was_written(kind, tmp_path):
    disk = tmp_path / "disk"

    def folder(path):
        with atomic_dir(path) as temporary:
            (temporary / "noise").write_bytes(NOISE.tobytes())

    def checked(path):
        with checked_file(path) as handle:
            torch.save({"noise": torch.from_numpy(NOISE)}, handle)

    def picture(path):
        figure = new_picture(20, 20)
        figure.subplots().imshow(NOISE.reshape(100, -1))
        save_picture(figure, path)

    def lines(path):
        append_text(path, "line\n" * 50_000)

    with contextlib.ExitStack() as stack:
        if kind == "small disk":
            stack.enter_context(mounted(disk))
        disk.mkdir(exist_ok=True)
        for write in (folder, checked, picture, lines):
            with (
                full(kind, disk, 2**15),
                pytest.raises(OSError, match=REASONS[kind]) as caught,
            ):
                write(disk / "target")
            assert system_message(caught.value).startswith(f"{disk / 'target'}")
            left = [path.name for path in disk.iterdir()]
            # Lists grow in place; who reads one drops half a line.
            assert left == (["target"] if write is lines else []), write
            (disk / "target").unlink(missing_ok=True)


def test_a_programs_mistake_while_writing_stays_what_it_is(tmp_path):
    with pytest.raises(KeyError), atomic_path(tmp_path / "file"):
        raise KeyError("mistake")
    with pytest.raises(FileNotFoundError) as caught, atomic_path(tmp_path / "file"):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")
    assert list(tmp_path.iterdir()) == []


def many_files(tmp_path):
    with contextlib.ExitStack() as stack:
        while True:
            stack.enter_context(open(tmp_path / "file", "a"))


def failures(tmp_path):
    """What raises, and what the line must say."""
    (tmp_path / "file").write_text("")

    def at(number, path):
        raise OSError(number, os.strerror(number), str(path))

    path = tmp_path / "x"
    yield lambda: at(errno.EROFS, path), f"{path}: Read-only file system; let the "
    yield lambda: at(errno.EACCES, path), f"{path}: Permission denied; change its owner"
    yield lambda: at(errno.EDQUOT, path), f"{path}: Disk quota exceeded; make room"
    yield lambda: many_files(tmp_path), "Too many open files; raise the limit of open"
    yield lambda: open(path), f"{path}: No such file or directory; check the option"
    yield lambda: shutil.copyfile(tmp_path, path), "Is a directory"
    yield lambda: b"\xe9t\xe9".decode(), "convert it to UTF-8"
    yield lambda: yaml.safe_load("!!python/name:os.system ''"), "not valid YAML"


def test_command_lines_end_with_one_line_and_code_1(tmp_path, caplog):
    for fail, expected in failures(tmp_path):
        caplog.clear()
        with pytest.raises(SystemExit) as left:
            run_main(fail)
        assert left.value.code == 1
        (record,) = caplog.records
        assert expected in record.getMessage() and record.exc_info is None
        assert "\n" not in record.getMessage()


@pytest.mark.parametrize("mistake", [KeyError("x"), RuntimeError("x"), TypeError("x")])
def test_mistakes_of_the_program_keep_their_traceback(mistake):
    assert system_message(mistake) is None

    def fail():
        raise mistake from OSError(errno.ENOSPC, "No space left on device", "file")

    with pytest.raises(type(mistake)):
        run_main(fail)


def test_an_error_without_a_name_gives_way_to_the_one_it_followed():
    named = RecipeError("exp/x: the checkpoint cannot be written")
    nameless = OSError(errno.ENOSPC, "No space left on device")
    nameless.__context__ = named
    assert system_message(nameless) == str(named)


def test_space_is_refused_before_it_is_missed_and_by_what_is_missing(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_space(tmp_path / "not" / "there", free / 2, "features", "lower --hours")
    with pytest.raises(RecipeError) as caught:
        check_space(tmp_path / "not" / "there", free + 2e12, "features", "lower --h")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/not/there: features take ")
    assert message.endswith("GB are free there; make room, or lower --h")
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize("usage", [(0, 0, 0), OSError(errno.ENOSYS, "no")])
def test_file_systems_that_do_not_tell_are_trusted(tmp_path, monkeypatch, usage):
    def tell(path):
        if isinstance(usage, OSError):
            raise usage
        return shutil._ntuple_diskusage(*usage)

    monkeypatch.setattr(system.shutil, "disk_usage", tell)
    check_space(tmp_path, 1e18, "features", "lower --hours")


@pytest.mark.parametrize("kind", KINDS)
def test_a_log_on_a_full_disk_costs_one_line_and_no_traceback(kind, tmp_path, capfd):
    disk = tmp_path / "disk"
    with contextlib.ExitStack() as stack:
        if kind == "small disk":
            stack.enter_context(mounted(disk))
        disk.mkdir(exist_ok=True)
        handler = LogFile(disk / "stage.log")
        record = logging.LogRecord("x", 20, __file__, 0, "line " * 4000, (), None)
        stderr, sys.__stderr__ = sys.__stderr__, sys.stderr
        try:
            with full(kind, disk, 2**13):
                for _ in range(3):
                    handler.handle(record)
                handler.close()
        finally:
            sys.__stderr__ = stderr
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"{disk / 'stage.log'}: {REASONS[kind]}; lines of this log")
