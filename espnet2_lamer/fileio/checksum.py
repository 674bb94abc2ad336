"""Files that carry their SHA-256 beside them, and are refused when they differ."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path, write_text
from espnet2_lamer.fileio.hashing import sha256_file

SUFFIX = ".sha256"


class _HashingFile:
    """A file object that hashes what passes, so that nothing is read twice."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self._handle.write(data)

    def flush(self) -> None:
        self._handle.flush()


@contextmanager
def checked_file(path: str | Path) -> Iterator[Any]:
    """Yield a binary file to write; ``<path>.sha256`` stands beside it afterwards.

    The file appears by rename, its checksum after it: while a file of the same name is
    replaced, none of them has one. Given a stream, ``torch.save`` does not write the
    name of the file into it.
    """
    path = Path(path)
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as handle:
            stream = _HashingFile(handle)
            yield stream
        sidecar(path).unlink(missing_ok=True)
    write_text(sidecar(path), checksum_line(stream.sha256.hexdigest(), path.name))


def sidecar(path: Path) -> Path:
    """Where a file's checksum is."""
    return path.with_name(path.name + SUFFIX)


def checksum_line(sha256: str, name: str) -> str:
    """One line in the format of ``sha256sum``."""
    return f"{sha256}  {name}\n"


def problem(path: Path) -> str | None:
    """Say what is wrong with a file that must have a checksum; ``None``: nothing."""
    try:
        expected = sidecar(path).read_text(encoding="utf-8").split()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        return "no checksum beside it"
    try:
        return None if sha256_file(path) == expected else "its checksum differs"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def check_file(path: str | Path) -> None:
    """Refuse a file that is no longer what was written; links are followed.

    Files of others, or of an earlier version, have no checksum beside them and pass.
    """
    real = Path(path).resolve()
    if not sidecar(real).is_file():
        return
    found = problem(real)
    if found is not None:
        raise RecipeError(
            f"{path}: damaged since it was written ({found}; {sidecar(real).name}); "
            "restore it from a copy, or remove it and run again what made it"
        )


def remove_file(path: Path) -> None:
    """Remove a file and its checksum, the checksum first."""
    sidecar(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def checksums(folder: Path) -> str:
    """Checksums of all files below a folder, as ``sha256sum`` writes them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return "".join(
        checksum_line(sha256_file(path), path.relative_to(folder).as_posix())
        for path in files
    )


def changed_files(folder: Path, record: Path) -> list[Path]:
    """Files below a folder that are gone or differ from the ``record`` in a file."""
    # A damaged record names files that are not there.
    text = record.read_text(encoding="utf-8", errors="replace")
    lines = (line.partition("  ") for line in text.splitlines())
    return [
        folder / name
        for sha256, _, name in lines
        if not (folder / name).is_file() or sha256_file(folder / name) != sha256
    ]
