"""Whether a result on disk was made from the inputs at hand."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def made_from(path: Path, inputs: Mapping[str, Any]) -> bool:
    """Tell whether ``path`` records exactly ``inputs`` (``False`` without a file)."""
    if not path.is_file():
        return False
    # Through JSON, which turns tuples into lists and keys into strings.
    return json.loads(path.read_text(encoding="utf-8")) == json.loads(
        json.dumps(inputs)
    )
