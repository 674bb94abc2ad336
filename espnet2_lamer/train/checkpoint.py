"""Step checkpoints on disk: written beside and renamed, hashed, the last two kept."""

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Any

import torch

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path, write_text
from espnet2_lamer.fileio.hashing import sha256_file

_NAME = re.compile(r"update_(\d{8,})\.pth")


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


class CheckpointStore:
    """The checkpoints of one experiment, ``<directory>/update_NNNNNNNN.pth``.

    Beside each stands ``.pth.sha256`` in the format of ``sha256sum``, written last: a
    file without it, or that does not match it, was not finished or is damaged.

    Args:
        directory: Made when the first checkpoint is written.
        keep: How many to keep; with two, one is whole while another is written.
    """

    def __init__(self, directory: str | Path, keep: int = 2) -> None:
        self.directory = Path(directory)
        self.keep = keep

    def paths(self) -> list[Path]:
        """Checkpoint files, the latest first, whole or not."""
        if not self.directory.is_dir():
            return []
        found = [p for p in self.directory.iterdir() if _NAME.fullmatch(p.name)]
        return sorted(found, key=_number, reverse=True)

    def save(self, state: dict[str, Any], updates: int) -> Path:
        """Write a checkpoint, then remove those that are no longer kept.

        Args:
            state: Tensors, numbers, strings, and lists and dicts of them.
            updates: Names the file.

        Returns:
            Its path.

        Raises:
            RecipeError: It could not be written (e.g. disk full); earlier ones stay.
        """
        path = self.directory / f"update_{updates:08d}.pth"
        try:
            with atomic_path(path) as temporary:
                with open(temporary, "wb") as handle:
                    stream = _HashingFile(handle)
                    torch.save(state, stream)
                # A checkpoint of the same name is not valid while it is replaced.
                _sidecar(path).unlink(missing_ok=True)
            write_text(_sidecar(path), f"{stream.sha256.hexdigest()}  {path.name}\n")
        except (OSError, RuntimeError) as error:
            kept = self.paths()
            raise RecipeError(
                f"{path}: the checkpoint of update {updates} cannot be written "
                f"({error}); "
                + (f"{kept[0].name} is whole: " if kept else "")
                + "make room and run again to go on"
            ) from error
        for old in self.paths()[self.keep :]:
            _sidecar(old).unlink(missing_ok=True)
            old.unlink(missing_ok=True)
        self._sweep()
        return path

    def load(self) -> dict[str, Any] | None:
        """Read the latest whole checkpoint; damaged ones are named and passed over.

        Returns:
            The state, on the CPU wherever it was saved; ``None`` when there is no
            checkpoint at all.

        Raises:
            RecipeError: There are checkpoints, and all of them are damaged.
        """
        paths = self.paths()
        for path in paths:
            problem = _problem(path)
            if problem is None:
                try:
                    return torch.load(path, map_location="cpu", weights_only=True)
                except Exception as error:
                    problem = str(error)
            logging.warning(
                "%s: damaged or not finished (%s); using the one before it",
                path,
                problem,
            )
        if paths:
            raise RecipeError(
                f"{self.directory}: all {len(paths)} checkpoints are damaged; remove "
                "the folder to train from the start"
            )
        return None

    def _sweep(self) -> None:
        """Remove what killed processes left half-written."""
        for path in self.directory.glob(".update_*.tmp"):
            owner = path.name.split(".")[-3]
            if owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
                path.unlink(missing_ok=True)


def _number(path: Path) -> int:
    return int(_NAME.fullmatch(path.name)[1])


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _problem(path: Path) -> str | None:
    try:
        expected = _sidecar(path).read_text(encoding="utf-8").split()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        return "no checksum beside it"
    return None if sha256_file(path) == expected else "its checksum differs"
