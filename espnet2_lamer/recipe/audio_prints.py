"""What the audio held that a stage read, and how many files changed since."""

import hashlib
import os
from pathlib import Path

import numpy as np

from espnet2_lamer.fileio.prints import FilePrints, Prints, listed_files, save_array


class AudioPrints:
    """Digests of the audio that tables name, and which files a digest was of."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.prints = Prints(directory / "seen.npy")
        # Of this run, until a stage may have changed files.
        self._known: dict[Path, str] = {}

    def __call__(self, table: Path) -> str:
        """Return the digest of what the files hold that a table names."""
        if table not in self._known:
            found = self.prints(listed_files(table))
            digest = hashlib.sha256(found.tobytes())
            if table.is_dir():
                names = (os.path.relpath(path, table) for path in listed_files(table))
                digest.update(os.fsencode("\0".join(names)))
            self._known[table] = digest.hexdigest()
            path = self._list(self._known[table])
            if not path.is_file():
                save_array(path, found)
        return self._known[table]

    def _list(self, digest: str) -> Path:
        return self.directory / f"{digest[:32]}.npy"

    def change(self, table: str, before: str, after: str) -> str:
        """Say how many files differ between two digests of a table."""
        old, new = (self._prints(digest) for digest in (before, after))
        if old is None or new is None:
            return f"audio of {table} changed"
        if len(old) == len(new):
            count = int((old != new).sum())
        else:
            count = max(len(np.setdiff1d(*pair)) for pair in ((old, new), (new, old)))
        return f"{count} of {len(new)} audio files of {table} changed"

    def _prints(self, digest: str) -> FilePrints | None:
        try:
            return np.load(self._list(digest))
        except (OSError, ValueError, EOFError):
            return None

    def forget(self) -> None:
        """Look again: files may have changed."""
        self._known.clear()

    def save(self, used: str) -> None:
        """Write what is known; lists that the text of no record names go."""
        self.prints.save()
        for path in self.directory.glob("*.npy"):
            if path != self.prints.path and path.stem not in used:
                path.unlink(missing_ok=True)
