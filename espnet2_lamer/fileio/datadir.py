"""Kaldi-style data directories: ``wav.scp``, ``text``, ``utt2spk``, ``utt2lang`` ..."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path
from espnet2_lamer.fileio.text import text_lines


def read_table(path: str | Path, made_by: str = "") -> dict[str, str]:
    """Read ``key value...`` lines into a dict that keeps the file's order.

    A tab may separate the two. A line without a value gets the empty string.
    ``made_by`` is named in the error when the file is missing, e.g. ``"labelling"``.

    Raises:
        RecipeError: The file is missing, a line is empty or not UTF-8, or a key occurs
            twice.
    """
    table: dict[str, str] = {}
    for number, (key, value) in enumerate(iterate_table(path, made_by), 1):
        if key in table:
            raise RecipeError(
                f"{path}:{number}: utterance id {key!r} occurs twice; ids are unique"
            )
        table[key] = value
    return table


def iterate_table(path: str | Path, made_by: str = "") -> Iterator[tuple[str, str]]:
    """Yield key and value of each line, as :func:`read_table`, which sees all keys."""
    path = Path(path)
    if not path.is_file():
        hint = f"; it is made by {made_by}" if made_by else ""
        raise RecipeError(f"{path}: file not found{hint}")
    empty = 0
    for number, line in text_lines(path):
        words = line.strip()
        if empty and words:
            raise RecipeError(f"{path}:{empty}: empty line; remove it")
        if words:
            key, _, value = words.partition(" ")
            if "\t" in key:
                key, _, value = words.partition("\t")
            yield key, value.strip()
        else:
            # At the end they do no harm.
            empty = empty or number


def write_table(path: str | Path, table: Mapping[str, str]) -> None:
    """Atomically write ``key value`` lines sorted by key in C-locale (byte) order."""
    write_lines(path, ((key, table[key]) for key in sorted(table, key=str.encode)))


def write_lines(path: str | Path, lines: Iterable[tuple[str, str]]) -> None:
    """Atomically write ``key value`` lines in the order in which they come."""
    with atomic_path(path) as temporary:
        with open(temporary, "w", encoding="utf-8", newline="\n") as handle:
            handle.writelines(f"{key} {value}".rstrip() + "\n" for key, value in lines)


def write_spk2utt(directory: str | Path, utt2spk: Mapping[str, str]) -> None:
    """Write ``utt2spk`` and its inverse ``spk2utt`` into ``directory``."""
    spk2utt: dict[str, list[str]] = {}
    for utt in sorted(utt2spk, key=str.encode):
        spk2utt.setdefault(utt2spk[utt], []).append(utt)
    write_table(Path(directory) / "utt2spk", utt2spk)
    lines = {spk: " ".join(utts) for spk, utts in spk2utt.items()}
    write_table(Path(directory) / "spk2utt", lines)
