"""Whether a result on disk was made from the inputs at hand."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet2_lamer.fileio.atomic import rename_old
from espnet2_lamer.fileio.hashing import sha256_file


def made_from(path: Path, inputs: Mapping[str, Any]) -> bool:
    """Tell whether ``path`` records exactly ``inputs`` (``False`` without a file)."""
    if not path.is_file():
        return False
    # Through JSON, which turns tuples into lists and keys into strings.
    return json.loads(path.read_text(encoding="utf-8")) == json.loads(
        json.dumps(inputs)
    )


def put_aside(directory: Path) -> None:
    """Rename a directory after what its ``inputs.json`` records; nothing is lost."""
    tag = sha256_file(directory / "inputs.json")[:8]
    target = rename_old(directory, tag)
    logging.info(
        "%s: inputs changed, training anew; the earlier one is %s", directory, target
    )
