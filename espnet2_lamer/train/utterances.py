"""Utterances of a training by number: names, lengths, languages, batches.

Ten million of them take some hundred megabytes: names stay in the file that has their
lengths, everything else is in arrays.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from espnet2_lamer.fileio.tables import Index, Table, hashes_of

# Names that are looked up together.
_BLOCK = 1 << 14


class Lengths(Mapping[str, int]):
    """Samples by utterance; utterances are numbered by their names in byte order.

    Attributes:
        samples: Of each number.
        table: Where names are read, for other tables to share its index.
    """

    def __init__(
        self,
        names: Sequence[str] | Table,
        samples: NDArray[np.int64],
        rows: NDArray[np.uint32] | None = None,
    ) -> None:
        self._names, self.samples, self._rows = names, samples, rows
        self.table = names if isinstance(names, Table) else None
        if self.table is None:
            self._index = Index(hashes_of([name.encode() for name in names]))

    @classmethod
    def of(cls, lengths: Mapping[str, int]) -> "Lengths":
        """Return lengths of any kind in this form."""
        if isinstance(lengths, cls):
            return lengths
        names = sorted(lengths)
        return cls(names, np.array([lengths[name] for name in names], np.int64))

    @classmethod
    def read(cls, path: str | Path) -> "Lengths":
        """Read ``utt samples[,...]`` lines; see :class:`Table` for what it raises."""
        table = Table(path, made_by="collecting statistics")
        with open(path, "rb") as handle:
            words = (line.split()[1].partition(b",")[0] for line in handle)
            samples = np.fromiter(map(int, words), np.int64, len(table))
        if table.is_sorted:
            return cls(table, samples.astype(np.int32))
        return cls.of(dict(zip(table, samples.tolist(), strict=True)))

    def name(self, number: int) -> str:
        """Return the name of an utterance."""
        row = number if self._rows is None else self._rows[number]
        if self.table is None:
            return self._names[row]
        return self.table.line(int(row))[0].decode()

    def numbers(self, names: Sequence[bytes]) -> NDArray[np.int64]:
        """Return the number of each name, -1 where it is none of these."""
        index = self._index if self.table is None else self.table.index
        rows = index.find(hashes_of(names))
        if self._rows is None:
            return rows
        place = np.minimum(np.searchsorted(self._rows, rows), len(self._rows) - 1)
        return np.where(self._rows[place] == rows, place, -1)

    def only(self, keep: NDArray[np.bool_]) -> "Lengths":
        """Return those utterances of which ``keep`` is true."""
        rows = (
            np.arange(len(keep), dtype=np.uint32) if self._rows is None else self._rows
        )
        if self.table is not None:
            return Lengths(self.table, self.samples[keep], rows[keep])
        kept = [name for name, yes in zip(self, keep.tolist(), strict=True) if yes]
        return Lengths(kept, self.samples[keep])

    def __getitem__(self, name: str) -> int:
        (number,) = self.numbers([name.encode()])
        if number < 0:
            raise KeyError(name)
        return int(self.samples[number])

    def __iter__(self) -> Iterator[str]:
        return (self.name(number) for number in range(len(self)))

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True, eq=False)
class Languages:
    """Language of each utterance by number: the position in ``names``, -1 is none."""

    lengths: Lengths
    codes: NDArray[np.int16]
    names: list[str]

    @classmethod
    def of(
        cls, languages: "Mapping[str, str] | Languages", lengths: Mapping[str, int]
    ) -> "Languages":
        """Return languages of any kind in this form."""
        if isinstance(languages, cls):
            return languages
        lengths, names = Lengths.of(lengths), sorted(set(languages.values()))
        codes = np.array([names.index(languages[utt]) for utt in lengths], np.int16)
        return cls(lengths, codes, names)

    @classmethod
    def read(
        cls, path: str | Path, lengths: Lengths, names: Sequence[str] | None = None
    ) -> "Languages":
        """Read ``utt language`` lines; ``names`` are all there are, or any are."""
        known = {name.encode(): n for n, name in enumerate(names or ())}
        codes = np.full(len(lengths), -1, np.int16)
        for numbers, values in blocks(path, lengths):
            for value in set(values) - {*known, b""} if names is None else ():
                known[value] = len(known)
            found = np.array([known.get(value, -1) for value in values], np.int16)
            codes[numbers[numbers >= 0]] = found[numbers >= 0]
        return cls(lengths, codes, [name.decode() for name in known])


def blocks(
    path: str | Path, lengths: Lengths
) -> Iterator[tuple[NDArray[np.int64], list[bytes]]]:
    """Yield the lines of a table by some thousand: numbers of utterances, values."""
    with open(path, "rb") as handle:
        while lines := handle.readlines(_BLOCK * 32):
            words = [
                line.strip().replace(b"\t", b" ").partition(b" ") for line in lines
            ]
            numbers = lengths.numbers([key for key, _, _ in words])
            yield numbers, [value.strip() for _, _, value in words]


class Batches(Sequence[list[str]]):
    """Batches of utterances, each a list of names.

    Batch b has the utterances ``order[starts[b]:ends[b]]``, in the crops and with the
    masks of ``draws[b]``, the pass over the data that it belongs to.
    """

    def __init__(
        self,
        lengths: Lengths,
        order: NDArray[np.int32],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        draws: NDArray[np.int32] | int = 1,
    ) -> None:
        self.lengths, self.order, self.starts, self.ends = lengths, order, starts, ends
        self.draws = np.broadcast_to(np.asarray(draws, np.int32), len(starts))

    def drawn(self, draw: int) -> "Batches":
        """Return the same batches in another pass."""
        return Batches(self.lengths, self.order, self.starts, self.ends, draw)

    def numbers(self, batch: int) -> NDArray[np.int32]:
        """Return the numbers of a batch's utterances."""
        return self.order[self.starts[batch] : self.ends[batch]]

    def __getitem__(self, batch):
        """Return the names of a batch, or some batches."""
        if isinstance(batch, slice):
            cut = (self.starts[batch], self.ends[batch], self.draws[batch])
            return Batches(self.lengths, self.order, *cut)
        return [self.lengths.name(number) for number in self.numbers(batch).tolist()]

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[list[str]]:
        return (self[batch] for batch in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else False

    def __add__(self, other: "Batches") -> "Batches":
        shift, order = len(self.order), np.concatenate([self.order, other.order])
        starts = np.concatenate([self.starts, other.starts + shift])
        ends = np.concatenate([self.ends, other.ends + shift])
        draws = np.concatenate([self.draws, other.draws])
        return Batches(self.lengths, order, starts, ends, draws)
