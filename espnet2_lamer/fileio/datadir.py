"""Kaldi-style data directories: ``wav.scp``, ``text``, ``utt2spk``, ``utt2lang`` ..."""

from collections.abc import Mapping
from pathlib import Path

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_text
from espnet2_lamer.fileio.text import read_text


def read_table(path: str | Path, made_by: str = "") -> dict[str, str]:
    """Read ``key value...`` lines into a dict that keeps the file's order.

    A tab may separate the two. A line without a value gets the empty string.
    ``made_by`` is named in the error when the file is missing, e.g. ``"labelling"``.

    Raises:
        RecipeError: The file is missing, a line is empty or not UTF-8, or a key occurs
            twice.
    """
    path = Path(path)
    if not path.is_file():
        hint = f"; it is made by {made_by}" if made_by else ""
        raise RecipeError(f"{path}: file not found{hint}")
    table: dict[str, str] = {}
    for number, line in enumerate(read_text(path).rstrip("\n").split("\n"), 1):
        if not line.strip():
            if number == 1:
                return table
            raise RecipeError(f"{path}:{number}: empty line; remove it")
        key, _, value = line.strip().partition(" ")
        if "\t" in key:
            key, _, value = line.strip().partition("\t")
        if key in table:
            raise RecipeError(
                f"{path}:{number}: utterance id {key!r} occurs twice; ids are unique"
            )
        table[key] = value.strip()
    return table


def write_table(path: str | Path, table: Mapping[str, str]) -> None:
    """Atomically write ``key value`` lines sorted by key in C-locale (byte) order."""
    lines = (f"{key} {table[key]}".rstrip() for key in sorted(table, key=str.encode))
    write_text(path, "".join(line + "\n" for line in lines))


def write_spk2utt(directory: str | Path, utt2spk: Mapping[str, str]) -> None:
    """Write ``utt2spk`` and its inverse ``spk2utt`` into ``directory``."""
    spk2utt: dict[str, list[str]] = {}
    for utt in sorted(utt2spk, key=str.encode):
        spk2utt.setdefault(utt2spk[utt], []).append(utt)
    write_table(Path(directory) / "utt2spk", utt2spk)
    lines = {spk: " ".join(utts) for spk, utts in spk2utt.items()}
    write_table(Path(directory) / "spk2utt", lines)
