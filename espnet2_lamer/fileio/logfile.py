"""Log files that a full disk does not turn into tracebacks."""

import logging
import sys
from contextlib import suppress
from pathlib import Path


class LogFile(logging.FileHandler):
    """Appends to a log; lines that a full disk refuses are lost, and it says so."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, mode="a", encoding="utf-8")
        self._failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Say once on the terminal that the file cannot be written."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            text = f"{self.baseFilename}: {error.strerror}; lines of this log are lost"
            print(text, file=sys.__stderr__)

    def close(self) -> None:
        """Close the file, whatever could not be written."""
        with suppress(OSError):
            super().close()
