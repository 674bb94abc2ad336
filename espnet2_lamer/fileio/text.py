"""Tables of text: UTF-8, or a message with file, line and byte."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from espnet2_lamer.errors import RecipeError


def text_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    r"""Yield number and text of each line, its end included, one in memory at a time.

    Only ``\n`` ends a line: texts may hold other Unicode line separators. A byte order
    mark at the beginning is left out.

    Raises:
        RecipeError: A line is not UTF-8.
        OSError: The file cannot be read.
    """
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if b"\0" in line:
                raise RecipeError(
                    f"{path}:{number}: holds a zero byte, as UTF-16 does, expected "
                    "UTF-8; convert the file, e.g. iconv -f UTF-16 -t UTF-8"
                )
            try:
                yield number, line.decode()
            except UnicodeDecodeError as error:
                raise RecipeError(
                    f"{path}:{number}: byte {error.start + 1} of the line is "
                    f"0x{line[error.start]:02x}, expected UTF-8; convert the file, "
                    "e.g. iconv -f LATIN1 -t UTF-8 with the encoding it has"
                ) from error


def read_text(path: str | Path) -> str:
    """Read a whole file as :func:`text_lines` does."""
    return "".join(line for _, line in text_lines(path))


@contextmanager
def utf8_tables(paths: Iterable[str | Path]) -> Iterator[None]:
    """Say which of the tables that a library reads in the block is not UTF-8."""
    try:
        yield
    except UnicodeDecodeError:
        for path in paths:
            for _ in text_lines(path):
                pass
        raise
