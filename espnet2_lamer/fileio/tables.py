"""Tables of millions of ``key value`` lines: a few bytes a line in memory, 8 to 24."""

import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.text import text_lines

_BOM = b"\xef\xbb\xbf"
# Keys that are compared together.
_PART = 1 << 20


class Index:
    """Where keys stand, by 64 bits of a hash: 12 bytes a key.

    Args:
        hashes: ``hash(key)`` of each key; Python's differ from process to process.
    """

    def __init__(self, hashes: NDArray[np.int64]) -> None:
        self._order = np.argsort(hashes, kind="stable").astype(np.uint32)
        self._sorted = hashes[self._order]

    def __len__(self) -> int:
        return len(self._order)

    def find(self, hashes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the (first) position of each key, -1 where there is none."""
        if not len(self):
            return np.full(len(hashes), -1)
        place = np.minimum(np.searchsorted(self._sorted, hashes), len(self) - 1)
        there = self._sorted[place] == hashes
        return np.where(there, self._order[place], np.int64(-1))

    def candidates(self, key: bytes) -> NDArray[np.uint32]:
        """Return the positions of a key, and of others with its hash."""
        value = hash(key)
        first = end = self._sorted.searchsorted(value)
        while end < len(self) and self._sorted[end] == value:
            end += 1
        return self._order[first:end]

    def repeated(self) -> NDArray[np.uint32]:
        """Return positions whose hash an earlier one has."""
        return self._order[1:][self._sorted[1:] == self._sorted[:-1]]

    def is_of(self, hashes: NDArray[np.int64]) -> bool:
        """Whether these are its keys, in its order."""
        parts = range(0, len(hashes), _PART)
        return len(hashes) == len(self) and all(
            np.array_equal(self.find(part), np.arange(n, n + len(part)))
            for n, part in ((n, hashes[n : n + _PART]) for n in parts)
        )


def hashes_of(keys: Sequence[bytes]) -> NDArray[np.int64]:
    """Return what an :class:`Index` knows keys by."""
    return np.fromiter(map(hash, keys), np.int64, len(keys))


class Table(Mapping[str, str]):
    """A text table whose values are read when they are asked for.

    The file must stay as it is, or be replaced as a whole. Keys are separated from
    values by spaces or tabs. With ``like``, another table, both share one index where
    they have the same keys in the same order; ``made_by`` is named where there is none.

    Raises:
        RecipeError: The file is missing or not UTF-8, a line is empty, or a key occurs
            twice.
    """

    def __init__(
        self, path: str | Path, like: "Table | None" = None, made_by: str = ""
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            hint = f"; it is made by {made_by}" if made_by else ""
            raise RecipeError(f"{path}: file not found{hint}")
        starts, hashes, position = array("Q"), array("q"), 0
        self.is_sorted, last = True, b""
        with open(path, "rb") as handle:
            for number, line in enumerate(handle, 1):
                try:
                    line.decode()
                    key = line.removeprefix(_BOM).split(None, 1)[0]
                except UnicodeDecodeError:
                    for _ in text_lines(path):
                        pass
                    raise
                except IndexError:
                    raise RecipeError(
                        f"{path}:{number}: empty line; remove it"
                    ) from None
                self.is_sorted = self.is_sorted and last < key
                starts.append(position)
                hashes.append(hash(key))
                position, last = position + len(line), key
        starts.append(position)
        self._starts = np.frombuffer(starts, np.uint64)
        found = np.frombuffer(hashes, np.int64)
        shared = like is not None and like.index.is_of(found)
        self.index = like.index if shared else Index(found)
        for place in self.index.repeated() if not shared else ():
            key = self.line(int(place))[0]
            first = min(n for n in self.index.candidates(key) if self.line(n)[0] == key)
            if first != place:
                raise RecipeError(
                    f"{path}:{int(place) + 1}: utterance id {key.decode()!r} occurs "
                    "twice; ids are unique"
                )

    def __reduce__(self) -> tuple:
        return Table, (self.path,)

    @cached_property
    def _file(self) -> BinaryIO:
        return open(self.path, "rb", buffering=0)

    def line(self, number: int) -> tuple[bytes, bytes]:
        """Return key and value of a line, counted from 0."""
        start, end = map(int, self._starts[number : number + 2])
        if hasattr(os, "pread"):
            data = os.pread(self._file.fileno(), end - start, start)
        else:  # a position of its own: processes may share the other
            with open(self.path, "rb") as handle:
                handle.seek(start)
                data = handle.read(end - start)
        key, _, value = (
            data.removeprefix(_BOM).strip().replace(b"\t", b" ").partition(b" ")
        )
        return key, value.strip()

    def __getitem__(self, key: str) -> str:
        for number in self.index.candidates(key.encode()):
            found, value = self.line(int(number))
            if found == key.encode():
                return value.decode()
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (self.line(number)[0].decode() for number in range(len(self)))

    def __len__(self) -> int:
        return len(self._starts) - 1


class NumberTable(Table):
    """A table whose values are whole numbers with spaces between."""

    def __reduce__(self) -> tuple:
        return NumberTable, (self.path,)

    def __getitem__(self, key: str) -> Any:
        return [int(word) for word in super().__getitem__(key).split()]
