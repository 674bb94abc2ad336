"""Run the cells of a definition one by one, and know where they are on disk."""

import fcntl
import fnmatch
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.experiments.definition import Cell, Data, Definition
from espnet2_lamer.experiments.measures import CellMeasure
from espnet2_lamer.fileio.atomic import write_json

#: Does the work of a cell or of data, holding the descriptor of its lock.
RunCell = Callable[[Cell, int], Sequence[CellMeasure]]
RunData = Callable[[Data, int], Any]


class Store:
    """Directories of data and cells below ``root``, one ``--expdir``.

    ``data/KEY`` and ``cells/KEY`` are where commands run; a file ``record.json`` in
    them, written by rename, says that they are done; ``failed.json`` says why not.
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

    def read(self, directory: Path, name: str = "record.json") -> dict[str, Any] | None:
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
        if found is None or found.get("key") != key:
            return None
        measures = [CellMeasure.from_dict(m) for m in found["measures"]]
        return {**found, "measures": {m.name: m for m in measures}}

    def start(self, directory: Path, description: dict[str, Any]) -> None:
        """Note what runs in a directory, and forget an earlier failure."""
        (directory / "failed.json").unlink(missing_ok=True)
        write_json(directory / "definition.json", description)

    def spent(self, directory: Path) -> float:
        """Seconds that killed or failed starts took, as far as they are known."""
        return float((self.read(directory, "spent.json") or {}).get("seconds", 0.0))

    def spend(self, directory: Path, seconds: float) -> None:
        """Note the seconds of a start that did not finish."""
        total = round(self.spent(directory) + seconds, 1)
        write_json(directory / "spent.json", {"seconds": total})

    def finish(self, directory: Path, values: dict[str, Any]) -> None:
        """Write the record: from now on it is done."""
        write_json(directory / "record.json", {**values, "finished": _now()})

    def remeasure(self, directory: Path, measures: Sequence[CellMeasure]) -> None:
        """Replace the figures of a record, and nothing else of it."""
        values = {**self.read(directory), "measures": [m.as_dict() for m in measures]}
        write_json(directory / "record.json", values)

    def fail(self, directory: Path, error: str, log: Path) -> None:
        """Note a failure."""
        found = {"error": error, "log": str(log), "time": _now()}
        write_json(directory / "failed.json", found)

    @contextmanager
    def lock(self, directory: Path, wait: bool) -> Iterator[int | None]:
        """Hold the lock of a directory, which is made if it is not there.

        A command that is started inside and keeps the descriptor holds it too, so an
        orphan of a killed process keeps others out until it ends.

        Yields:
            The descriptor; None when another process has it and ``wait`` is false.
        """
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            yield None
            return
        try:
            yield descriptor
        finally:
            os.close(descriptor)


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

    ``run_data`` makes shared data, ``run_cell`` runs a cell; ``about`` (``commit`` and
    ``machine``) is written into records.
    """

    def __init__(
        self,
        definition: Definition,
        cells: Sequence[Cell],
        store: Store,
        run_data: RunData,
        run_cell: RunCell,
        about: dict[str, str] | None = None,
    ) -> None:
        self.definition = definition
        self.cells = list(cells)
        self.store = store
        self.run_data = run_data
        self.run_cell = run_cell
        self.about = about or {}
        self._broken: set[str] = set()

    def status(self, cell: Cell) -> Status:
        """Say where a cell stands."""
        if self.store.record(cell.key) is not None:
            return Status("done")
        for directory in (self.store.cell(cell.key), self.store.data(cell.data.key)):
            failure = self.store.read(directory, "failed.json")
            if failure is not None and self.store.read(directory) is None:
                return Status("failed", failure["error"], failure["log"])
        waits = self._waits(cell)
        return Status("not run", f"needs {waits}" if waits else "")

    def _waits(self, cell: Cell) -> str:
        labels = {c.key: c.label for c in self.cells}
        for key in (*cell.needs, *cell.data.needs):
            if self.store.record(key) is None:
                return labels.get(key, key)
        return ""

    def minutes(self, cell: Cell) -> float:
        """Estimate a cell's time: its system's cells, else all, else the definition."""
        records = [(c, self.store.record(c.key)) for c in self.cells]
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
            if self.store.record(cell.key) is not None:
                continue
            waits = self._waits(cell)
            if waits:
                logging.warning("%s: left out, it needs %s", cell.label, waits)
                continue
            need = self.minutes(cell) + self.data_minutes(cell.data)
            spent = (time.monotonic() - started) / 60
            if budget is not None and spent + need > budget:
                left = f"{max(0.0, budget - spent):.1f} of {budget:g}"
                logging.info(
                    "%s: left out, it would take about %.1f min and %s are left",
                    cell.label,
                    need,
                    left,
                )
                continue
            if not (self._prepare(cell) and self._run_one(cell)):
                failed.append(cell)
            after()
        return failed

    def remeasure(self, measure: Callable[[Cell], Sequence[CellMeasure]]) -> None:
        """Replace the figures of all finished cells by what ``measure`` reads.

        Raises:
            RecipeError: A cell's files are gone; its record stays as it was.
        """
        for cell in {c.key: c for c in self.cells}.values():
            if self.store.record(cell.key) is None:
                continue
            try:
                measures = measure(cell)
            except RecipeError as error:
                raise RecipeError(f"{cell.label}: {error}") from error
            self.store.remeasure(self.store.cell(cell.key), measures)

    def _chosen(self, pattern: str) -> list[Cell]:
        names = [f"{cell.system}/{cell.seed}" for cell in self.cells]
        chosen = [
            cell
            for cell, name in zip(self.cells, names, strict=True)
            if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(cell.system, pattern)
        ]
        if not chosen:
            raise RecipeError(
                f"--cells: found {pattern!r}, which matches no cell; expected a "
                f"pattern of some of {', '.join(names)}"
            )
        return chosen

    def _prepare(self, cell: Cell) -> bool:
        directory = self.store.data(cell.data.key)
        if cell.data.key in self._broken:
            return False
        # Others need the same data: wait for who makes them.
        with self.store.lock(directory, wait=True) as lock:
            if self.store.read(directory) is not None:
                return True
            label = f"data {cell.data.key}"
            logging.info("%s: starts", label)
            self.store.start(
                directory, {"key": cell.data.key, "options": dict(cell.data.options)}
            )
            return self._work(directory, label, partial(self.run_data, cell.data, lock))

    def _run_one(self, cell: Cell) -> bool:
        directory = self.store.cell(cell.key)
        with self.store.lock(directory, wait=False) as lock:
            if lock is None:
                logging.info("%s: another process runs it", cell.label)
                return True
            if self.store.record(cell.key) is not None:
                return True
            logging.info("%s: starts, log %s", cell.label, directory / "log.txt")
            self.store.start(
                directory,
                {
                    "key": cell.key,
                    "seed": cell.seed,
                    "data": cell.data.key,
                    "options": dict(cell.options),
                    "configs": {name: dict(c) for name, c in cell.configs.items()},
                },
            )
            return self._work(directory, cell.label, partial(self.run_cell, cell, lock))

    def _work(
        self, directory: Path, label: str, work: Callable[[], Sequence[CellMeasure]]
    ) -> bool:
        """Do the work and write its record, or why there is none."""
        started = time.monotonic()
        finished = False
        try:
            measures = work()
            finished = True
        except Exception as error:  # whatever it is, other cells may work
            known = isinstance(error, RecipeError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            logging.error("%s failed: %s", label, reason, exc_info=not known)
            self.store.fail(directory, reason, directory / "log.txt")
            self._broken.add(directory.name)
            return False
        finally:
            seconds = time.monotonic() - started
            if not finished:
                self.store.spend(directory, seconds)
        seconds += self.store.spent(directory)
        self.store.finish(
            directory,
            {
                "key": directory.name,
                "seconds": round(seconds, 1),
                **self.about,
                "measures": [m.as_dict() for m in measures],
            },
        )
        logging.info("%s: done in %.1f min", label, seconds / 60)
        return True
