"""Which layers are compared where nobody names any."""

from collections.abc import Sequence

from espnet2_lamer.errors import RecipeError

# The last is about where features are read for ASR (22 of 24, 11 of 12).
DEPTHS = (1 / 4, 1 / 2, 3 / 4, 11 / 12)


def compared_layers(layers: Sequence[int], depth: int, option: str) -> list[int]:
    """Return the states to compare of a model with ``depth`` layers.

    Args:
        layers: Those asked for; empty: at a quarter, half, three quarters and eleven
            twelfths of the depth.
        depth: Number of transformer layers L.
        option: Who asked, for the error.

    Raises:
        RecipeError: One is not among 0 (the transformer's input) to L.
    """
    wrong = [layer for layer in layers if not 0 <= layer <= depth]
    if wrong:
        raise RecipeError(
            f"{option}: found {wrong[0]}, expected 0 (the transformer's input) to "
            f"{depth}"
        )
    return list(layers) or sorted({max(1, round(d * depth)) for d in DEPTHS})
