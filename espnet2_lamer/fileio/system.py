"""What the operating system refuses, in one line: which file, why, what to do."""

import errno
import logging
import os
import pickle
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from espnet2_lamer.errors import RecipeError, short_reason

_ROOM = "make room there, then run the same command again to go on"
_ADVICE = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "files may not be so large there (ulimit -f, or its disk); raise "
    "the limit, then run the same command again to go on",
    errno.EROFS: "let the option that names it point to a disk that can be written",
    errno.EACCES: "change its owner or permissions, or name another place",
    errno.EPERM: "change its owner or permissions, or name another place",
    errno.EMFILE: "raise the limit of open files (ulimit -n 65536), or lower --nj or "
    "num_workers",
    errno.ENFILE: "the whole machine has too many files open; wait, or lower --nj",
    errno.EIO: "the disk or the network behind it fails; check it, then run again",
    errno.ESTALE: "the file server lost it; run the same command again",
    errno.ENOENT: "check the option or file that names it, or run the stage that makes "
    "it",
    errno.EISDIR: "remove the folder, or name a file",
    errno.ENOTDIR: "part of the path is a file; remove it, or name another place",
    errno.ENAMETOOLONG: "use shorter names or ids",
}
# What only writing meets: such an error belongs to the file that is being written.
_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_PROBE_BYTES = 2**16


def system_message(error: BaseException) -> str | None:
    """Describe an error that is not the program's fault.

    Returns:
        One line for an ``OSError``, a text that is not UTF-8, broken YAML or a file
        that would have to be unpickled; ``None`` for everything else, which may be a
        mistake of the program.
    """
    if isinstance(error, RecipeError):
        return str(error)
    if isinstance(error, OSError):
        link: BaseException | None = error
        # Closing a log on a full disk fails as well, after what names the file.
        while link is not None:
            if isinstance(link, RecipeError):
                return str(link)
            if isinstance(link, OSError) and link.filename is not None:
                return _line(link)
            link = link.__cause__ or link.__context__
        return _line(error)
    if isinstance(error, UnicodeDecodeError):
        near = error.object[max(error.start - 30, 0) : error.end + 10]
        return f"a file is not {error.encoding} near {near!r}; convert it to UTF-8"
    if isinstance(error, UnicodeEncodeError):
        near = ascii(error.object[max(error.start - 60, 0) : error.end + 20])
        return f"a name is not UTF-8 near {near}; rename that file or folder"
    if isinstance(error, yaml.YAMLError):
        return f"not valid YAML: {' '.join(str(error).split())}"
    if isinstance(error, pickle.UnpicklingError):
        return f"a file is not loadable as plain weights: {short_reason(error)}"
    return None


def _line(error: OSError) -> str:
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    advice = _ADVICE.get(error.errno or 0)
    return f"{where}{reason}" + (f"; {advice}" if advice else "")


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Let errors of writing name the file, whatever library meets them.

    A write that fails knows no name, and libraries hide why it failed: libsndfile says
    "System error", torch "unexpected pos". Where a library failed, a write of our own
    tells whether the system is the reason. ``path`` is the file, or the folder of the
    files, that the block writes; ``temporary`` what it writes instead, to be renamed.

    Raises:
        OSError: With ``path``, in place of one without a name, and of any other
            exception while nothing can be written there.
    """
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:
        cause: Exception | None = error
        if not isinstance(error, OSError) or error.errno is None:
            cause = _stated(error) or _refusal(
                temporary or (path if path.is_dir() else path.parent)
            )
        if not isinstance(cause, OSError):
            raise
        name = "" if cause.filename is None else os.fsdecode(cause.filename)
        if temporary is not None and name.startswith(str(temporary)):
            name = str(path) + name.removeprefix(str(temporary))
        elif cause is not error or (not name and cause.errno in _WRITING):
            name = str(path)
        else:
            raise
        raise OSError(cause.errno, cause.strerror, name) from error


def _stated(error: Exception) -> OSError | None:
    """What a library met and hid: behind its exception, or, in Rust, in its text."""
    link = error.__context__
    while link is not None:
        if isinstance(link, OSError) and link.errno in _WRITING:
            return OSError(link.errno, link.strerror)
        link = link.__context__
    match = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(match[1]), os.strerror(int(match[1]))) if match else None


def _refusal(path: Path) -> OSError | None:
    """Why nothing more can be written to a file, or to a new one of a folder."""
    probe = path / f".{os.getpid()}.probe" if path.is_dir() else path
    existed = probe.exists()
    try:
        with open(probe, "ab") as handle:
            handle.write(bytes(_PROBE_BYTES))
    except OSError as error:
        return error if error.errno in _WRITING else None
    finally:
        if not existed:
            with suppress(OSError):
                probe.unlink()
    return None


class LogFile(logging.FileHandler):
    """Appends to a log; lines that a full disk refuses are lost, and it says so."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, mode="a", encoding="utf-8")
        self._failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Say once on the terminal that the file cannot be written."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            text = f"{self.baseFilename}: {error.strerror}; lines of this log are lost"
            print(text, file=sys.__stderr__)

    def close(self) -> None:
        """Close the file, whatever could not be written."""
        with suppress(OSError):
            super().close()


def check_space(folder: str | Path, needed: float, what: str, way_out: str) -> None:
    """Refuse to begin what the disk of a folder, which need not exist, cannot hold.

    ``needed`` bytes are still to come; ``what`` they are, e.g. ``"teacher features"``,
    and which option makes them less or moves them (``way_out``), is for the message.
    File systems that do not say what is free are trusted.
    """
    place = Path(folder).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        usage = shutil.disk_usage(place)
    except OSError:
        return
    if usage.total and needed > usage.free:
        raise RecipeError(
            f"{folder}: {what} take {size(needed)} more, {size(usage.free)} are free "
            f"there; make room, or {way_out}"
        )


def bytes_of(paths: Iterable[Path]) -> int:
    """Sum of the sizes of those files that are there."""
    return sum(path.stat().st_size for path in paths if path.is_file())


def size(count: float) -> str:
    """Write a number of bytes for people: ``1.5 GB``, ``20 MB``, ``3 kB``."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1e3:.1f} kB"
