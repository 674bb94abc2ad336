"""Unpack a corpus' tar archive once, without letting it write elsewhere."""

import json
import logging
import tarfile
import zlib
from pathlib import Path

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_dir, write_json

_MARK = "archive.json"


def extract_once(archive: str | Path, folder: str | Path) -> Path:
    """Unpack ``archive`` into ``folder`` unless that was done before.

    The folder appears by rename when all of it is there, so that a run that was killed
    starts this archive again and no other. Members that would leave the folder, and
    devices, are refused (:func:`tarfile.data_filter`).

    Args:
        archive: A tar file, compressed or not.
        folder: Where its members go; it holds nothing else.

    Returns:
        ``folder``.

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
