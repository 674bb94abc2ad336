"""Prints: what a million files hold, looked at again only where a file changed.

A print is 64 bits of a file's SHA-256, and 0 where there is no file. A file whose size
and times (last change of content, last change at all) are those of the last look has
the print of the last look.
"""

import hashlib
import logging
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from espnet2_lamer.fileio.atomic import atomic_path
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.fileio.text import text_lines

#: A print per file, in the order of the files.
FilePrints = NDArray[np.uint64]
# The path's hash, three values that say "as before", the print.
_SEEN = np.dtype([(name, "<u8") for name in ("key", "size", "mtime", "ctime", "print")])
_STAMP = ["size", "mtime", "ctime"]
# Threads wait for a file server rather than for this processor.
_THREADS = 16
_PART = 512
_BATCH = _THREADS * _PART


class Prints:
    """Prints of files, remembered in a file (``None``: for this process only)."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        try:
            self._seen = np.load(path) if path else np.zeros(0, _SEEN)
            if self._seen.dtype != _SEEN:
                raise ValueError("of another kind")
        except (OSError, ValueError, EOFError):  # it only saves time
            self._seen = np.zeros(0, _SEEN)
        self._keys = self._seen["key"].copy()
        self._saved = True

    def __call__(self, paths: Iterable[str]) -> FilePrints:
        """Return a print per path; log how many files had to be read."""
        from tqdm import tqdm

        found, read, touched = [], [], 0
        paths = iter(paths)
        bar = tqdm(
            desc="look for changed files", unit="file", disable=None, leave=False
        )
        with ThreadPoolExecutor(_THREADS) as pool, bar:
            while batch := list(islice(paths, _BATCH)):
                parts = [batch[i : i + _PART] for i in range(0, len(batch), _PART)]
                now = np.concatenate(list(pool.map(_look, parts)))
                place = np.searchsorted(self._keys, now["key"])
                place = np.minimum(place, max(len(self._keys) - 1, 0))
                then = self._seen[place] if len(self._keys) else np.zeros_like(now)
                known = then["key"] == now["key"]
                same = known & (then[_STAMP] == now[_STAMP])
                now["print"] = np.where(same, then["print"], 0)
                new = np.flatnonzero(~same & (now["mtime"] > 0))
                now["print"][new] = list(pool.map(_print, (batch[i] for i in new)))
                touched += int((known & ~same & (then["print"] == now["print"])).sum())
                read.append(now[new])
                found.append(now["print"])
                bar.update(len(batch))
        self._learn(np.concatenate([np.zeros(0, _SEEN), *read]))
        if touched:
            logging.info("%d files with other times than before, same content", touched)
        return np.concatenate([np.zeros(0, np.uint64), *found])

    def _learn(self, new: np.ndarray) -> None:
        if not len(new):
            return
        both = np.concatenate([self._seen, new])
        both = both[np.argsort(both["key"], kind="stable")]
        # The latest of each file.
        last = np.append(both["key"][1:] != both["key"][:-1], True)
        self._seen, self._saved = both[last], False
        self._keys = self._seen["key"].copy()

    def save(self) -> None:
        """Write what is known now, if that changed."""
        if self.path and not self._saved:
            save_array(self.path, self._seen)
            self._saved = True


def save_array(path: Path, array: np.ndarray) -> None:
    """Atomically write an array in NumPy's format."""
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, array)


def _look(paths: Sequence[str]) -> np.ndarray:
    rows = []
    for path in paths:
        key = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
        row = [int.from_bytes(key, "little"), 0, 0, 0, 0]
        try:
            status = os.stat(path)
            if stat.S_ISREG(status.st_mode):
                # Before 1970 nothing was recorded; 0 stands for no file.
                times = (max(1, t) for t in (status.st_mtime_ns, status.st_ctime_ns))
                row[1:4] = status.st_size, *times
        except (OSError, ValueError):
            pass
        rows.append(tuple(row))
    return np.array(rows, _SEEN)


def _print(path: str) -> int:
    try:
        return int(sha256_file(path)[:16], 16) or 1
    except OSError:  # gone meanwhile, or not to be read
        return 0


_shared: list[Prints] = []


@contextmanager
def sharing(prints: Prints) -> Iterator[None]:
    """Let :func:`file_prints` in the block use what these know."""
    _shared.append(prints)
    try:
        yield
    finally:
        _shared.pop()


def file_prints(paths: Iterable[str], path: Path | None = None) -> FilePrints:
    """Return a print per path, with what the recipe knows where it runs.

    Elsewhere they are remembered in the file ``path``, if there is one.
    """
    if _shared:
        return _shared[-1](paths)
    prints = Prints(path)
    found = prints(paths)
    prints.save()
    return found


def listed_files(table: Path) -> Iterator[str]:
    """Yield the audio files that a table names, in its order.

    Tables are ``wav.scp``, a corpus's listing of what was left out (``*.tsv``, last
    column), a transcript of ML-SUPERB (audio in ``wav/`` beside it), or a folder: all
    files below it.
    """
    if table.is_dir():
        for folder, folders, names in os.walk(table):
            folders.sort()
            yield from (os.path.join(folder, name) for name in sorted(names))
        return
    for _, line in text_lines(table):
        words = line.rstrip("\n")
        if table.suffix == ".tsv":
            yield words.rpartition("\t")[2]
        elif table.name.startswith("transcript_"):
            yield str(table.parent / "wav" / f"{words.partition(' ')[0]}.wav")
        else:
            yield words.partition(" ")[2].strip()


def audio_digest(tables: Iterable[Path]) -> str:
    """Digest of the content of all files that some tables name."""
    digest = hashlib.sha256()
    for table in tables:
        digest.update(file_prints(listed_files(table)).tobytes())
    return digest.hexdigest()


def older_than(record: Path, tables: Iterable[Path]) -> bool:
    """Whether no file that the tables name has changed since a record was written."""
    written = record.stat().st_mtime_ns
    found = (_look([path]) for table in tables for path in listed_files(table))
    return all(row["ctime"][0] <= written for row in found)
