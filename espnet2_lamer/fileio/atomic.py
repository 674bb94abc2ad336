"""Write files and directories, whole or not at all."""

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from espnet2_lamer.fileio.system import naming

# .NAME.PLACE.PROCESS.RANDOM.tmp
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})\.(\d+)\.[0-9a-f]{8}\.tmp")
# No write takes so long that it would not touch its file once.
_ABANDONED_SECONDS = 7 * 24 * 3600


def _beside(path: Path) -> Path:
    # Same directory, so that the final rename stays on one file system.
    _remove_leftovers(os.path.abspath(path.parent))
    owner = f"{_place()}.{os.getpid()}"
    return path.with_name(f".{path.name}.{owner}.{uuid.uuid4().hex[:8]}.tmp")


@cache
def _place() -> str:
    """Name the running system in which a process number means something.

    Containers have their own processes, and a folder may be shared by machines.
    """
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


@cache
def _remove_leftovers(folder: str) -> None:
    """Remove, once, what killed processes left half-written in a folder.

    A process of this system is asked for; of another one nothing is known, so its files
    stay until they are a week old.
    """
    with os.scandir(folder) as entries:
        found = [(e.path, _TEMPORARY.fullmatch(e.name)) for e in entries]
    for path, match in found:
        if match is None or not _abandoned(path, match[1], int(match[2])):
            continue
        logging.info("%s: removed, a killed process left it half-written", path)
        _remove(Path(path))


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _abandoned(path: str, place: str, process: int) -> bool:
    try:
        # Elsewhere than on POSIX, os.kill would end the process it asks for.
        if place != _place() or os.name != "posix":
            return time.time() - os.lstat(path).st_mtime > _ABANDONED_SECONDS
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # of another user, or gone
        return False
    return False


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to ``path`` in the end, or removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        with naming(path, temporary):
            yield temporary
            os.replace(temporary, path)
    finally:
        _remove(temporary)


@contextmanager
def atomic_path(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary file path that replaces ``path`` when the block succeeds.

    On an exception the temporary file is removed and ``path`` is left as it was. What
    a killed process left is removed by the next one that writes to the folder. Without
    ``sync`` a power failure may leave less than what was written.

    Raises:
        OSError: With ``path``, where the system does not let it be written.
    """
    with _replacing(Path(path)) as temporary:
        yield temporary
        if sync:
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield a directory that replaces directory ``path``, as :func:`atomic_path`."""
    path = Path(path)
    old = None
    with _replacing(path) as temporary:
        temporary.mkdir()
        yield temporary
        if path.exists():
            old = _beside(path)
            os.replace(path, old)
    if old is not None:
        _remove(old)


def link(path: Path, target: str) -> None:
    """Make ``path`` a symbolic link to ``target``, replacing an old one at once."""
    with _replacing(path) as temporary:
        temporary.symlink_to(target)


def append_text(path: str | Path, text: str) -> None:
    """Append ``text`` as UTF-8; a kill or a full disk may leave a part of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), open(path, "a", encoding="utf-8") as handle:
        handle.write(text)


def rename_old(directory: Path, tag: str) -> Path:
    """Rename to ``<directory>.old-<tag>``, with ``-2`` ... where that is taken."""
    target = directory.with_name(f"{directory.name}.old-{tag}")
    number = 1
    while target.exists():
        number += 1
        target = directory.with_name(f"{directory.name}.old-{tag}-{number}")
    os.replace(directory, target)
    return target


def write_text(path: str | Path, text: str) -> None:
    """Atomically write ``text`` as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Atomically write ``value`` as indented JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
