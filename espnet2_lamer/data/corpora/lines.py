"""Lines of index files, decoded one by one: a damaged one must not cost the rest."""

from collections.abc import Iterator
from pathlib import Path

from espnet2_lamer.errors import RecipeError


def read_lines(path: str | Path) -> Iterator[tuple[int, str | None]]:
    r"""Yield line number and text without its end; None for a line that is not UTF-8.

    Only ``\n`` ends a line: transcripts may hold other separators. A byte order mark
    at the beginning is dropped.

    Raises:
        RecipeError: The file does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(
            f"{path}: file not found; it belongs to the archive: unpack it again, or "
            "correct the path of the corpus"
        )
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, line.decode("utf-8").removesuffix("\n").rstrip("\r")
            except UnicodeDecodeError:
                yield number, None
