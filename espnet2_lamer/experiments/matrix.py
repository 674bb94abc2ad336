"""Run the cells of a definition one by one, and know where they are on disk."""

import fnmatch
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.experiments.cells import Cell, Data
from espnet2_lamer.experiments.definition import Definition
from espnet2_lamer.experiments.measures import CellMeasure
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.locks import WHOLE, Busy, exclusive

RECORD = "record.json"
#: Key of a record that another machine wrote: the file it was taken from.
SOURCE = "taken_from"


class Store:
    """Directories of data and cells below ``root``, one ``--expdir``.

    ``data/KEY`` and ``cells/KEY`` are where commands run; a file ``record.json`` in
    them, written by rename, says that they are done; ``failed.json`` says why not, and
    ``spent.json`` what starts took that did not finish.
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

    def read(self, directory: Path, name: str = RECORD) -> dict[str, Any] | None:
        """Return a file of a cell or data; None if it is not there, or torn."""
        try:
            return json.loads((directory / name).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def record(self, key: str) -> dict[str, Any] | None:
        """Return what a cell found, its figures by name; None if it is not done.

        ``seconds`` are of all its starts together, ``commit`` and ``machine`` say what
        it ran at and on.
        """
        found = self.read(self.cell(key))
        if found is None:
            return None
        measures = [CellMeasure.from_dict(m) for m in found["measures"]]
        return {**found, "measures": {m.name: m for m in measures}}


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


@dataclass(frozen=True)
class Status:
    """Where a cell stands: ``done``, ``failed`` or ``not run``.

    ``why`` is the reason of a failure, or what it waits for; ``log`` says more.
    """

    state: str
    why: str = ""
    log: str = ""


class Matrix:
    """The cells of one definition, each after those it reads, and where they stand.

    ``run_data`` makes shared data, ``run_cell`` runs a cell, both holding the
    descriptor of its lock; ``about`` (``commit`` and ``machine``) is written into
    records.
    """

    def __init__(
        self,
        definition: Definition,
        cells: Sequence[Cell],
        store: Store,
        run_data: Callable[[Data, int], Sequence[CellMeasure]],
        run_cell: Callable[[Cell, int], Sequence[CellMeasure]],
        about: dict[str, str] | None = None,
    ) -> None:
        self.definition = definition
        self.cells = list(cells)
        self.store = store
        self.run_data = run_data
        self.run_cell = run_cell
        self.about = about or {}
        self._broken: set[Path] = set()

    def status(self, cell: Cell) -> Status:
        """Say where a cell stands."""
        if self._record(cell.key) is not None:
            return Status("done")
        for directory in (self.store.cell(cell.key), self.store.data(cell.data.key)):
            failure = self.store.read(directory, "failed.json")
            if failure is not None and self.store.read(directory) is None:
                return Status("failed", failure["error"], failure["log"])
        waits = self._waits(cell)
        return Status("not run", f"needs {waits}" if waits else "")

    def _record(self, key: str) -> dict[str, Any] | None:
        return self.store.read(self.store.cell(key))

    def _waits(self, cell: Cell) -> str:
        labels = {c.key: c.label for c in self.cells}
        for key in (*cell.needs, *cell.data.needs):
            record, label = self._record(key), labels.get(key, key)
            if record is None:
                return label
            if SOURCE in record and not self.store.experiment(key).is_dir():
                return f"the files of {label}, of which {record[SOURCE]} has figures"
        return ""

    def minutes(self, cell: Cell) -> float:
        """Estimate a cell's time: its system's cells, else all, else the definition."""
        records = [(c, self._record(c.key)) for c in self.cells]
        known = [(c, r["seconds"] / 60) for c, r in records if r is not None]
        own = [minutes for c, minutes in known if c.system == cell.system]
        if own:
            return fmean(own)
        if known:
            # Scaled by what the definition says of the two systems.
            return fmean(minutes * cell.minutes / c.minutes for c, minutes in known)
        return cell.minutes

    def data_minutes(self, data: Data) -> float:
        """Time that shared data will take: 0 when done."""
        found = self.store.read(self.store.data(data.key))
        return 0.0 if found is not None else self.definition.data_minutes

    def plan(self, pattern: str = "*") -> list[str]:
        """Say what would run, in order, with estimated minutes."""
        lines, total, seen = [], 0.0, set()
        for cell in self._chosen(pattern):
            state = self.status(cell)
            if state.state == "done":
                lines.append(f"{cell.label}: done ({cell.key})")
                continue
            extra = 0.0 if cell.data.key in seen else self.data_minutes(cell.data)
            seen.add(cell.data.key)
            if extra:
                lines.append(f"data {cell.data.key}: about {extra:.1f} min")
            minutes = self.minutes(cell)
            total += extra + minutes
            why = f", {state.state}: {state.why}" if state.why else ""
            lines.append(f"{cell.label}: about {minutes:.1f} min ({cell.key}{why})")
        return [*lines, f"in all about {total:.0f} min"]

    def run(
        self,
        pattern: str = "*",
        budget: float | None = None,
        after: Callable[[], Any] = lambda: None,
    ) -> list[Cell]:
        """Run every cell that is not done.

        Args:
            pattern: Only cells whose ``SYSTEM/SEED`` matches this shell pattern.
            budget: Minutes; a cell that would probably not end within them is left.
            after: Called after each cell.

        Returns:
            The cells that failed.
        """
        started = time.monotonic()
        failed: list[Cell] = []
        for cell in self._chosen(pattern):
            if self._record(cell.key) is not None:
                continue
            waits = self._waits(cell)
            if waits:
                logging.warning("%s: left out, it needs %s", cell.label, waits)
                continue
            need = self.minutes(cell) + self.data_minutes(cell.data)
            spent = (time.monotonic() - started) / 60
            if budget is not None and spent + need > budget:
                left = f"{need:.1f} min, {max(0.0, budget - spent):.1f} of {budget:g}"
                logging.info("%s: left out, it needs about %s left", cell.label, left)
                continue
            if not (self._make_data(cell.data) and self._run_one(cell)):
                failed.append(cell)
            after()
        return failed

    def remeasure(self, measure: Callable[[Cell], Sequence[CellMeasure]]) -> None:
        """Replace the figures of all finished cells by what ``measure`` reads.

        Raises:
            RecipeError: A cell's files are gone; its record stays as it was.
        """
        for cell in {c.key: c for c in self.cells}.values():
            record = self._record(cell.key)
            if record is None:
                continue
            try:
                record["measures"] = [m.as_dict() for m in measure(cell)]
            except RecipeError as error:
                raise RecipeError(f"{cell.label}: {error}") from error
            write_json(self.store.cell(cell.key) / RECORD, record)

    def _chosen(self, pattern: str) -> list[Cell]:
        names = {f"{cell.system}/{cell.seed}": cell for cell in self.cells}
        chosen = [
            cell
            for name, cell in names.items()
            if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(cell.system, pattern)
        ]
        if not chosen:
            raise RecipeError(
                f"--cells: found {pattern!r}, which matches no cell; expected a "
                f"pattern of some of {', '.join(names)}"
            )
        return chosen

    def _make_data(self, data: Data) -> bool:
        directory = self.store.data(data.key)
        if directory in self._broken:
            return False
        description = {"key": data.key, "options": dict(data.options)}
        # Others need the same data: wait for who makes them.
        with exclusive(directory / WHOLE) as lock:
            work = partial(self.run_data, data, lock)
            return self._work(directory, f"data {data.key}", description, work)

    def _run_one(self, cell: Cell) -> bool:
        directory = self.store.cell(cell.key)
        description = {
            "key": cell.key,
            "seed": cell.seed,
            "data": cell.data.key,
            "options": dict(cell.options),
            "configs": {name: dict(c) for name, c in cell.configs.items()},
            "environment": dict(cell.environment),
        }
        try:
            with exclusive(directory / WHOLE, wait=False) as lock:
                work = partial(self.run_cell, cell, lock)
                return self._work(directory, cell.label, description, work)
        except Busy as error:
            logging.info("%s: another process runs it: %s", cell.label, error)
            return True

    def _work(
        self,
        directory: Path,
        label: str,
        description: dict[str, Any],
        work: Callable[[], Sequence[CellMeasure]],
    ) -> bool:
        """Do what no other process has done; write its record, or why there is none."""
        if self.store.read(directory) is not None:
            return True
        log = directory / "log.txt"
        logging.info("%s: starts, log %s", label, log)
        (directory / "failed.json").unlink(missing_ok=True)
        write_json(directory / "definition.json", description)
        before = (self.store.read(directory, "spent.json") or {}).get("seconds", 0.0)
        started = time.monotonic()
        measures = None
        try:
            measures = work()
        except Exception as error:  # whatever it is, other cells may work
            known = isinstance(error, RecipeError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            logging.error("%s failed: %s", label, reason, exc_info=not known)
            failure = {"error": reason, "log": str(log), "time": _now()}
            write_json(directory / "failed.json", failure)
            self._broken.add(directory)
            return False
        finally:
            seconds = round(before + time.monotonic() - started, 1)
            if measures is None:
                write_json(directory / "spent.json", {"seconds": seconds})
        record = {
            "key": directory.name,
            "seconds": seconds,
            **self.about,
            "measures": [m.as_dict() for m in measures],
            "finished": _now(),
        }
        write_json(directory / RECORD, record)
        logging.info("%s: done in %.1f min", label, seconds / 60)
        return True
