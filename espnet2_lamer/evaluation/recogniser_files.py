"""What lies beside a recogniser's config and weights, and its record."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.tokens import BPE_MODEL
from espnet2_lamer.fileio.atomic import write_text
from espnet2_lamer.fileio.foreign import read_yaml

#: How the text was normalised, what was tuned, which language models there are and
#: how they are weighted.
RECOGNISER = "recogniser.yaml"
NGRAM = "ngram.arpa.gz"
LM_CONFIG, LM_WEIGHTS = "lm.yaml", "lm.pth"


def read_record(directory: Path) -> dict[str, Any]:
    """Return a recogniser's record; models of earlier versions have none: empty."""
    path = directory / RECOGNISER
    if not path.is_file():
        return {}
    record = read_yaml(path)
    for key in ("text", "language_models", "decoding"):
        if not isinstance(record.get(key) or {}, dict):
            raise RecipeError(
                f"{path}: {key}: found {record[key]!r}, expected a mapping"
            )
    return record


def write_record(directory: Path, record: Mapping[str, Any]) -> None:
    """Write a recogniser's record."""
    text = yaml.safe_dump(dict(record), sort_keys=False, allow_unicode=True)
    write_text(directory / RECOGNISER, text)


def extra_files(directory: Path) -> list[Path]:
    """Return what a package of the model in ``directory`` needs beside the two.

    The language model of ESPnet's LM task is named apart, see :func:`lm_files`.
    """
    names = (BPE_MODEL, RECOGNISER, NGRAM)
    return [directory / name for name in names if (directory / name).is_file()]


def lm_files(directory: Path) -> tuple[Path, Path] | None:
    """Return config and weights of the transformer LM, where there is one."""
    paths = directory / LM_CONFIG, directory / LM_WEIGHTS
    return paths if all(path.is_file() for path in paths) else None
