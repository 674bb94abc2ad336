"""ESPnet's training messages: into a file, with a progress bar on the terminal."""

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

from tqdm import tqdm


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
def espnet_log(path: Path, description: str) -> Iterator[None]:
    """Send what ESPnet logs and prints to a file; the console keeps errors only.

    Args:
        path: The file; appended to, so that a resumed run keeps its history.
        description: Name of the progress bar.
    """
    root = logging.getLogger()
    level = root.level
    console = [(handler, handler.level) for handler in root.handlers]
    path.parent.mkdir(parents=True, exist_ok=True)
    bar = EpochBar(description)
    with open(path, "a", encoding="utf-8") as stream, warnings.catch_warnings():
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
        root.addHandler(file)
        root.addHandler(bar)
        root.setLevel(logging.INFO)
        try:
            with redirect_stderr(stream):
                yield
        finally:
            for handler in (file, bar):
                root.removeHandler(handler)
                handler.close()
            for handler, handler_level in console:
                handler.setLevel(handler_level)
            root.setLevel(level)
