"""One process at a time in a folder: who holds its lock, since when, what to do."""

import errno
import json
import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from espnet2_lamer.errors import RecipeError

try:
    import fcntl
except ImportError:  # not everywhere, and there nothing is locked
    fcntl = None

#: What the lock of a folder, with all that is in it, is the lock of: it lies inside.
WHOLE = "stages"
# A process that was just killed may take so long to end; one that has just begun, to
# say who it is.
_SECONDS = 1.0
# A line of a lock's file: who holds it, how, and in which job of Slurm's.
Holder = Mapping[str, Any]
# Files of the locks of this process; a process that it forks has none of them.
_held: dict[str, int] = {}


def _forget() -> None:
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class Busy(RecipeError):
    """Another process has the lock."""


@contextmanager
def exclusive(
    path: str | Path, wait: bool = True, shared: bool = False
) -> Iterator[int | None]:
    """Hold the lock of a path, which need not exist; another process waits, or stops.

    The lock is on the file ``.<name>.lock`` beside the path, which says who has it, and
    ends with its process, however that ends. A command that is started inside and keeps
    the descriptor holds it too. A process that has the lock may take it again.

    Args:
        path: What is worked on.
        wait: Whether to wait for the end of another process, which is logged.
        shared: Whether others may hold it like this at the same time.

    Yields:
        The descriptor; None where this process, or another of its job on several nodes,
        has the lock already.

    Raises:
        Busy: ``wait`` is false, and another process has the lock; or one of another
            machine has left it, of which is not known whether it lives.
    """
    # By its real name, however it was called.
    path = Path(os.path.realpath(Path(path).parent), Path(path).name)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f".{path.name}.lock")
    needless = fcntl is None or str(file) in _held
    # A process of the same job stands for the others.
    if needless or (descriptor := _acquire(file, wait, shared)) is None:
        yield None
        return
    _held[str(file)] = descriptor
    line = json.dumps(_this_process() | {"shared": shared}).encode() + b"\n"
    end = len(line)
    # On a full disk nobody is named. Others may be adding lines at the same time.
    with suppress(OSError), open(file, "ab", buffering=0) as handle:
        handle.write(line)
        end = handle.tell()
    try:
        yield descriptor
    finally:
        if _held.pop(str(file), None) is not None:
            if _flock(descriptor, shared=False):
                os.ftruncate(descriptor, 0)
            else:
                os.pwrite(descriptor, b" " * (len(line) - 1), end - len(line))
            os.close(descriptor)


@contextmanager
def working_on(output: str | Path, shared: bool = False) -> Iterator[None]:
    """Hold the locks of a command: its output's, and its recipe folder's, if in one.

    ``shared``: other commands and stages may work elsewhere in the recipe's folder, but
    none on what these are made from. Raises as :func:`exclusive` that does not wait.
    """
    output = Path(output).absolute()
    with ExitStack() as stack:
        for folder in output.parents:
            if (folder / f".{WHOLE}.lock").exists():
                stack.enter_context(exclusive(folder / WHOLE, False, shared))
                break
        stack.enter_context(exclusive(output, wait=False))
        yield


def _this_process() -> Holder:
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    return {
        "host": platform.node(),
        "process": os.getpid(),
        "command": shlex.join(sys.orig_argv)[:500],
        "since": datetime.now().isoformat(" ", timespec="seconds"),
        "job": [os.environ.get(name, "") for name in names],
    }


def _acquire(file: Path, wait: bool, shared: bool) -> int | None:
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if shared and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return None  # whose folder it is cannot ask readers to keep out
        raise
    try:
        ends, said = time.monotonic() + _SECONDS, False
        while True:
            free = _flock(descriptor, shared)
            lines = _holders(descriptor)
            holders = [holder for *_, holder in lines]
            if any(_is_with_us(x) for x in holders):
                os.close(descriptor)
                return None
            against = [x for x in holders if not (shared and x["shared"])]
            if free is None:
                free = not any(_lives(x) for x in against)
            # The lock of a file system may not reach to other machines.
            if free and (wait or all(_is_known(x) for x in against)):
                break
            if not wait and (free or time.monotonic() > ends):
                raise Busy(_busy(file, against))
            if wait and not said and holders:
                text = "%s: another process works there; waiting for its end: %s"
                logging.info(text, _shown(file), _who(holders[-1]))
                said = True
            time.sleep(0.1)
        for start, length, holder in lines:
            if _is_known(holder) and not (shared and _lives(holder)):
                text = "%s: taken over from a killed process: %s"
                logging.warning(text, _shown(file), _who(holder))
                os.pwrite(descriptor, b" " * length, start)
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise
    return descriptor


def _flock(descriptor: int, shared: bool) -> bool | None:
    """Whether the lock could be taken; None where the file system has none."""
    try:
        how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            return None
        raise
    return True


def _holders(descriptor: int) -> list[tuple[int, int, Holder]]:
    """Where a line begins, its length, and who wrote it."""
    found, start = [], 0
    for line in os.pread(descriptor, 2**20, 0).split(b"\n"):
        with suppress(ValueError):
            found.append((start, len(line), json.loads(line)))
        start += len(line) + 1
    return found


def _is_here(holder: Holder) -> bool:
    return holder["host"] == platform.node()


def _is_with_us(holder: Holder) -> bool:
    """Whether it is the same step of Slurm's, on another of its nodes."""
    several = os.environ.get("SLURM_STEP_NUM_NODES", "1") != "1"
    return several and holder["job"] == _this_process()["job"]


def _is_known(holder: Holder) -> bool:
    """Whether a lock that is free tells that the process has ended.

    On another machine it does not, but Slurm starts a job again only when it has ended.
    """
    job, *_, start = _this_process()["job"]
    again = job and holder["job"][0] == job and holder["job"][-1] != start
    return _is_here(holder) or bool(again)


def _lives(holder: Holder) -> bool:
    """Whether the process is there; one of another machine may be."""
    if _is_here(holder):
        try:
            os.kill(int(holder["process"]), 0)
        except ProcessLookupError:
            return False
        except OSError:  # of another user
            pass
    return True


def _who(holder: Holder) -> str:
    return "process {process} on {host}, since {since}: {command}".format(**holder)


def _shown(file: Path) -> Path:
    """What a lock is of, as a user knows it."""
    name = file.name.removeprefix(".").removesuffix(".lock")
    return file.parent if name == WHOLE else file.with_name(name)


def _busy(file: Path, holders: list[Holder]) -> str:
    who = "; ".join(map(_who, holders[-3:])) or "one that does not say who it is"
    if any(not _lives(holder) for holder in holders):
        who += " (it was killed, but a process that it started goes on)"
    away = "; if there is no such process any more on that machine: rm "
    by_hand = "" if all(map(_is_here, holders)) else away + shlex.quote(str(file))
    return (
        f"{_shown(file)}: another process works there: {who}; wait for its end, or "
        f"stop it, then run the same command again, or work in other folders{by_hand}"
    )
