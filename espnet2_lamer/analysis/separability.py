"""How far apart languages lie in a layer's states: a criterion to place experts."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike


def fisher_ratio(groups: Mapping[str, ArrayLike] | Sequence[ArrayLike]) -> float:
    r"""Separability of languages: scatter between them over scatter within.

    With vectors :math:`x_{cu}` of utterance u in language c, means :math:`m_c` of each
    language and m of all,

    .. math::
        J = \frac{\sum_c n_c \lVert m_c - m \rVert^2}
                 {\sum_c \sum_u \lVert x_{cu} - m_c \rVert^2}

    the ratio of the traces of Fisher's scatter matrices. It does not change when all
    vectors are shifted, rotated or scaled.

    Args:
        groups: Per language the vectors of its utterances ``[n_c, D]``.

    Raises:
        ValueError: Fewer than two languages or one without utterances, or no vector
            differs from its language's mean.
    """
    arrays = list(groups.values()) if isinstance(groups, Mapping) else list(groups)
    arrays = [np.asarray(array, dtype=np.float64) for array in arrays]
    if len(arrays) < 2 or min(map(len, arrays)) == 0:
        raise ValueError("expected two or more languages with utterances")
    mean = np.concatenate(arrays).mean(axis=0)
    between = sum(len(x) * np.sum((x.mean(axis=0) - mean) ** 2) for x in arrays)
    within = sum(np.sum((x - x.mean(axis=0)) ** 2) for x in arrays)
    if within == 0:
        raise ValueError("utterances of a language do not differ")
    return float(between / within)
