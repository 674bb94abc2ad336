"""A corpus' archive: found, unpacked once, its index files read line by line."""

import json
import logging
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from espnet2_lamer.data.corpora import CORPORA
from espnet2_lamer.data.sets import Utterance
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_dir, write_json

_MARK = "archive.json"
_SHOWN = 8


@dataclass(frozen=True)
class Archive:
    """What a corpus' reader finds.

    Attributes:
        folder: The archive, for the report.
        sets: Pairs of ``pretrain/<split>_<lang>`` or ``eval/<split>_<lang>`` and
            utterances; read one by one.
        details: More for the report.
        complete: Set to the number of rows in the complete archive; a set that has
            fewer is warned about.
    """

    folder: Path
    sets: Iterable[tuple[str, list[Utterance]]]
    details: Mapping[str, object] = field(default_factory=dict)
    complete: Mapping[str, int] = field(default_factory=dict)


def locate(
    corpus: str, root: str | Path, markers: Sequence[str], folders: Sequence[str] = ()
) -> Path:
    """Return the folder of an archive as an absolute path.

    Args:
        corpus: Name of the corpus.
        root: What the user gave: the archive's folder or the one around it.
        markers: Names or patterns of files or folders; every such archive has one of
            them.
        folders: Names or patterns of the archive's folder inside ``root``.

    Raises:
        RecipeError: There is none.
    """
    root = Path(root)
    inside = [folder for name in folders for folder in sorted(root.glob(name))]
    for folder in (root, *inside):
        if any(any(folder.glob(marker)) for marker in markers):
            return Path(os.path.abspath(folder))
    raise RecipeError(
        f"{root}: {found_in(root)}, expected {' or '.join(markers)} of {corpus}; "
        f"correct {CORPORA[corpus]} in db.sh, or --root"
    )


def found_in(folder: Path) -> str:
    """Say what is in a folder, for errors."""
    if not folder.is_dir():
        return "folder not found"
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"found {', '.join(names[:_SHOWN])}{more}" if names else "found nothing"


def read_rows(path: str | Path) -> Iterator[tuple[str, list[str]]]:
    r"""Yield ``file:line`` and the values between tabs of every line that has any.

    A line that is not UTF-8 costs only itself: it has no values. Only ``\n`` ends a
    line: transcripts may hold other separators. A byte order mark is dropped.

    Raises:
        RecipeError: The file does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(
            f"{path}: file not found; it belongs to the archive: unpack it again, or "
            "correct the path of the corpus"
        )
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            line = line.removesuffix(b"\n").rstrip(b"\r")
            if not line:
                continue
            try:
                yield f"{path}:{number}", line.decode().split("\t")
            except UnicodeDecodeError:
                yield f"{path}:{number}", []


def extract_once(archive: str | Path, folder: str | Path) -> Path:
    """Unpack ``archive`` into ``folder`` unless that was done before.

    The folder appears by rename when all of it is there, so that a run that was killed
    starts this archive again and no other. Members that would leave the folder, and
    devices, are refused (:func:`tarfile.data_filter`).

    Returns:
        ``folder``, which holds nothing else.

    Raises:
        RecipeError: The file is no tar archive, is truncated, or holds a member that
            would be written elsewhere.
    """
    archive, folder = Path(archive), Path(folder)
    status = archive.stat()
    origin = {
        "archive": archive.name,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }
    try:
        if json.loads((folder / _MARK).read_text(encoding="utf-8")) == origin:
            return folder
    except (OSError, json.JSONDecodeError):
        pass
    logging.info("unpacking %s", archive)
    try:
        with atomic_dir(folder) as temporary:
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
            write_json(temporary / _MARK, origin)
    except tarfile.FilterError as error:
        raise RecipeError(
            f"{archive}: {error}; this is not the corpus' own archive: download it "
            "again"
        ) from None
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        # Disk full and the like are no fault of the archive.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = (str(error).splitlines() or [""])[0].rstrip(":")
        raise RecipeError(
            f"{archive}: not a whole tar archive ({reason}); download it again"
        ) from None
    return folder
