"""PNG pictures without a display: the same figures give the same bytes."""

from pathlib import Path
from typing import TYPE_CHECKING

from espnet2_lamer.fileio.atomic import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_picture(width: float, height: float) -> "Figure":
    """Return an empty matplotlib figure; its sizes are in inches."""
    # The object interface needs no display and leaves no global state behind.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_picture(picture: "Figure", path: str | Path, dpi: int = 150) -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        # Without the program's version, which would change the bytes.
        picture.savefig(temporary, format="png", dpi=dpi, metadata={"Software": None})
