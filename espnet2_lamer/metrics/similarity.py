"""How alike two descriptions of the same frames are: linear CKA, information."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from espnet2_lamer.errors import RecipeError

# The last is about where features are read for ASR (22 of 24, 11 of 12).
_DEPTHS = (1 / 4, 1 / 2, 3 / 4, 11 / 12)


class LinearCKA:
    r"""Linear centred kernel alignment, accumulated over utterances.

    For features :math:`X\ [T, D_1]` and :math:`Y\ [T, D_2]` of the same T frames,
    columns centred (Kornblith et al., "Similarity of neural network representations
    revisited", ICML 2019, Eq. 4 and Section 3 for the linear kernel):

    .. math::
        CKA(X, Y) = \frac{\lVert Y^T X \rVert_F^2}
                         {\lVert X^T X \rVert_F \, \lVert Y^T Y \rVert_F}

    It is 1 for representations that agree up to rotation, scale and shift, and lies
    between 0 and 1. Memory is :math:`O((D_1 + D_2)^2)` whatever the number of frames.
    The estimate is biased upwards unless there are many more frames than dimensions.
    """

    def __init__(self) -> None:
        self.frames = 0
        self._split = 0

    def add(self, x: ArrayLike, y: ArrayLike) -> None:
        """Add an utterance's features ``[T, D_1]`` and ``[T, D_2]``.

        Raises:
            ValueError: Their numbers of frames differ.
        """
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        if len(x) != len(y):
            raise ValueError(
                f"expected [T, D1] and [T, D2] of one T, found {x.shape} and {y.shape}"
            )
        joint = np.concatenate([x, y], axis=1)
        if not len(joint):
            return
        if not self.frames:
            # Products of centred values are differences of large numbers unless the
            # values are near zero to begin with; the first utterance's mean does it.
            self._offset = joint.mean(axis=0)
            self._sum = np.zeros(joint.shape[1])
            self._products = np.zeros((joint.shape[1], joint.shape[1]))
            self._split = x.shape[1]
        joint -= self._offset
        self._sum += joint.sum(axis=0)
        self._products += joint.T @ joint
        self.frames += len(joint)

    def value(self) -> float:
        """Return the CKA of everything added.

        Raises:
            ValueError: No frames, or one of the representations is constant.
        """
        if not self.frames:
            raise ValueError("no frames were added")
        centred = self._products - np.outer(self._sum, self._sum) / self.frames
        split = self._split
        within_x = np.linalg.norm(centred[:split, :split])
        within_y = np.linalg.norm(centred[split:, split:])
        if within_x == 0 or within_y == 0:
            raise ValueError("a representation is constant over all frames")
        between = np.linalg.norm(centred[split:, :split]) ** 2
        return float(between / (within_x * within_y))


def compared_layers(layers: Sequence[int], depth: int, option: str) -> list[int]:
    """Return the states to compare of a model with ``depth`` layers.

    Where ``layers`` names none, they lie at a quarter, half, three quarters and eleven
    twelfths of the depth.

    Raises:
        RecipeError: One is not among 0 to ``depth``; names the option.
    """
    wrong = [layer for layer in layers if not 0 <= layer <= depth]
    if wrong:
        raise RecipeError(
            f"{option}: found {wrong[0]}, expected 0 (the transformer's input) to "
            f"{depth}"
        )
    return list(layers) or sorted({max(1, round(d * depth)) for d in _DEPTHS})


def entropy(counts: np.ndarray) -> float:
    """Entropy of a table of counts in nats."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def phone_scores(joint: np.ndarray) -> dict[str, float]:
    """Agreement of phones and units, from frames counted as ``[phones, K]``.

    As in HuBERT (arXiv:2106.07447, section IV-C): phone purity is the share of frames
    whose phone is the likeliest of their unit, cluster purity the share whose unit is
    the likeliest of their phone, and PNMI is I(phone; unit) / H(phone).
    """
    frames = joint.sum()
    phones = entropy(joint.sum(1))
    information = entropy(joint.sum(0)) + phones - entropy(joint)
    return {
        "pnmi": information / phones if phones else 0.0,
        "phone_purity": float(joint.max(0).sum() / frames),
        "cluster_purity": float(joint.max(1).sum() / frames),
        "phone_majority": float(joint.sum(1).max() / frames),
    }
