"""ESPnet's training messages: into a file, with a progress bar on the terminal."""

import logging
import multiprocessing
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from tqdm import tqdm

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.system import naming
from espnet2_lamer.train.signals import STOP_SIGNALS

# Where processes that a training spawns find the file.
_LOG_VARIABLE = "ESPNET2_LAMER_TRAIN_LOG"


class EpochBar(logging.Handler):
    """Shows ESPnet's epochs, which it only logs, as a progress bar."""

    def __init__(self, description: str) -> None:
        super().__init__()
        self.bar = tqdm(desc=description, unit="epoch", disable=not sys.stderr.isatty())

    def emit(self, record: logging.LogRecord) -> None:
        """Move the bar when ESPnet says that an epoch starts."""
        match = re.match(r"(\d+)/(\d+)epoch started", record.getMessage())
        if match:
            self.bar.total = int(match[2])
            self.bar.n = int(match[1]) - 1
            self.bar.refresh()

    def close(self) -> None:
        """Remove the bar."""
        self.bar.close()
        super().close()


@contextmanager
def child_log() -> Iterator[None]:
    """In a process that a training with :func:`espnet_log` spawned: log as it does."""
    path = os.environ.get(_LOG_VARIABLE)
    if path is None or multiprocessing.parent_process() is None:
        yield
        return
    with espnet_log(Path(path), Path(path).parent.name, bar=False):
        yield


@contextmanager
def espnet_log(path: Path, description: str, bar: bool = True) -> Iterator[None]:
    """Send what ESPnet logs and prints to a file; the console keeps errors only.

    Args:
        path: The file; appended to, so that a resumed run keeps its history.
        description: Name of the progress bar.
        bar: Whether there is one.

    Raises:
        OSError: With the log's folder, where a file of ESPnet's could not be written.
    """
    root = logging.getLogger()
    level = root.level
    console = [(handler, handler.level) for handler in root.handlers]
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        naming(path.parent),
        open(path, "a", encoding="utf-8") as stream,
        warnings.catch_warnings(),
    ):
        # ESPnet's own use of torch; nothing a user could change.
        warnings.simplefilter("ignore", FutureWarning)
        file = logging.StreamHandler(stream)
        file.setFormatter(
            logging.Formatter(
                "%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s"
            )
        )
        for handler, _ in console:
            handler.setLevel(logging.ERROR)
        added = [file, EpochBar(description)] if bar else [file]
        for handler in added:
            root.addHandler(handler)
        root.setLevel(logging.INFO)
        outer = os.environ.get(_LOG_VARIABLE)
        os.environ[_LOG_VARIABLE] = str(path.resolve())
        try:
            with redirect_stderr(stream):
                yield
        finally:
            if outer is None:
                del os.environ[_LOG_VARIABLE]
            else:
                os.environ[_LOG_VARIABLE] = outer
            for handler in added:
                root.removeHandler(handler)
                handler.close()
            for handler, handler_level in console:
                handler.setLevel(handler_level)
            root.setLevel(level)


def run_espnet(task: Any, command: Sequence[str], log: Path) -> None:
    """Run one of ESPnet's tasks in this process.

    Args:
        task: Class with ESPnet's ``main``.
        command: Its options.
        log: File for its messages; the folder's name is that of the progress bar.

    Raises:
        RecipeError: ESPnet refused its options.
        SystemExit: It was asked to stop from outside, and has written a checkpoint.
    """
    with espnet_log(log, log.parent.name):
        try:
            task.main(cmd=command)
        except SystemExit as error:
            if error.code in [128 + number for number in STOP_SIGNALS]:
                raise
            raise RecipeError(
                f"{log.parent}: ESPnet refused its options; read the message above "
                f"and {log}"
            ) from error
