"""Where cells live on disk, which are done, and who runs one at the moment."""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from espnet2_lamer.experiments.cells import Cell
from espnet2_lamer.experiments.measures import CellMeasure
from espnet2_lamer.fileio.atomic import write_json


@dataclass(frozen=True)
class Record:
    """What a finished cell found.

    Attributes:
        key: Of the cell.
        measures: Figures by name.
        seconds: How long it took, all its starts together.
        finished: When.
        commit: Commit it ran at, or "".
        machine: What it ran on.
    """

    key: str
    measures: dict[str, CellMeasure]
    seconds: float
    finished: str
    commit: str
    machine: str


class Store:
    """Directories of data and cells below one ``--expdir``.

    ``data/KEY`` and ``cells/KEY`` are where commands run; a file ``record.json`` in
    them, written by rename, says that they are done; ``failed.json`` says why not.

    Args:
        root: The directory.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()

    def cell(self, key: str) -> Path:
        """Directory of a cell."""
        return self.root / "cells" / key

    def data(self, key: str) -> Path:
        """Directory of shared data."""
        return self.root / "data" / key

    def experiment(self, key: str) -> Path:
        """``--expdir`` of a cell."""
        return self.cell(key) / "exp"

    def read(self, directory: Path) -> dict[str, Any] | None:
        """Return the record in a directory; None if it is not done."""
        return _read(directory / "record.json")

    def record(self, key: str) -> Record | None:
        """Return what a cell found; None if it is not done."""
        found = self.read(self.cell(key))
        if found is None or found.get("key") != key:
            return None
        measures = [CellMeasure.from_dict(m) for m in found["measures"]]
        return Record(
            key=key,
            measures={m.name: m for m in measures},
            seconds=found["seconds"],
            finished=found["finished"],
            commit=found.get("commit", ""),
            machine=found.get("machine", ""),
        )

    def failure(self, directory: Path) -> dict[str, Any] | None:
        """Return why a cell or data failed last time; None if it did not."""
        return _read(directory / "failed.json")

    def start(self, directory: Path, description: dict[str, Any]) -> None:
        """Note what runs in a directory, and forget an earlier failure."""
        (directory / "failed.json").unlink(missing_ok=True)
        write_json(directory / "definition.json", description)

    def spent(self, directory: Path) -> float:
        """Seconds that killed or failed starts took, as far as they are known."""
        return float((_read(directory / "spent.json") or {}).get("seconds", 0.0))

    def spend(self, directory: Path, seconds: float) -> None:
        """Note the seconds of a start that did not finish."""
        total = round(self.spent(directory) + seconds, 1)
        write_json(directory / "spent.json", {"seconds": total})

    def finish(self, directory: Path, values: dict[str, Any]) -> None:
        """Write the record: from now on it is done."""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(directory / "record.json", {**values, "finished": now})

    def remeasure(self, directory: Path, measures: Sequence[CellMeasure]) -> None:
        """Replace the figures of a record, and nothing else of it."""
        values = {**self.read(directory), "measures": [m.as_dict() for m in measures]}
        write_json(directory / "record.json", values)

    def fail(self, directory: Path, error: str, log: Path) -> None:
        """Note a failure."""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(
            directory / "failed.json", {"error": error, "log": str(log), "time": now}
        )

    @contextmanager
    def lock(self, directory: Path, wait: bool) -> Iterator[int | None]:
        """Hold a directory's lock.

        A command that is started inside and keeps the descriptor holds it too, so an
        orphan of a killed process keeps others out until it ends.

        Args:
            directory: Of a cell or data; made if it is not there.
            wait: Whether to wait for who has it.

        Yields:
            The descriptor; None when another process has it and ``wait`` is false.
        """
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT)
        try:
            try:
                mode = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
                fcntl.flock(descriptor, mode)
            except BlockingIOError:
                yield None
                return
            yield descriptor
        finally:
            os.close(descriptor)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def describe_cell(cell: Cell) -> dict[str, Any]:
    """Return what decides a cell's result, for the reader of its directory."""
    return {
        "key": cell.key,
        "seed": cell.seed,
        "data": cell.data.key,
        "options": dict(cell.options),
        "configs": {name: dict(content) for name, content in cell.configs.items()},
    }
