"""Which base and teacher the recipe works with, as stage 0 recorded them."""

import json
from pathlib import Path
from typing import Any

from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.recipe.options import Options


def read_checkpoints(options: Options) -> dict[str, dict[str, Any]]:
    """Return stage 0's record: ``{"base": {"path": ...}, "teacher": ...}``."""
    return json.loads(options.checkpoints.read_text(encoding="utf-8"))


def base_path(options: Options) -> str:
    """The base: local directory or file, or name of a torchaudio bundle."""
    return read_checkpoints(options)["base"]["path"]


def teacher_path(options: Options) -> str:
    """The teacher: as the base, or a name that needs no checkpoint.

    Before it is recorded, what the option says.
    """
    if not options.checkpoints.is_file():
        return options.teacher
    return read_checkpoints(options)["teacher"]["path"]


def has_phones(data_dir: Path) -> bool:
    """Whether a data dir knows its phones (synthetic speech does)."""
    return (data_dir / "phones.ctm").is_file() and bool(
        read_table(data_dir / "wav.scp")
    )
