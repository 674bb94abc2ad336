"""Which layers tell the language of an utterance: a linear probe, and separability."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.metrics.measure import Measure

FOLDS = 5
# Iterations of L-BFGS. Fixed, so that every layer's probe gets the same budget.
_ITERATIONS = 200


@dataclass(frozen=True)
class Folds:
    """A division of utterances into parts that are held out in turn."""

    part: NDArray[np.int64]  # number of the part of every utterance [U]
    # What an interval draws: the speaker of every utterance where parts are of
    # speakers, else the utterance itself.
    owners: list[str]
    by_speaker: bool  # no speaker is in two parts

    @property
    def number(self) -> int:
        """How many parts there are."""
        return int(self.part.max()) + 1


def held_out_folds(
    utts: Sequence[str],
    langs: Sequence[str],
    speakers: Sequence[str],
    folds: int = FOLDS,
    seed: int = 0,
) -> Folds:
    """Divide utterances ``[U]`` so that each part has every language in its share.

    Speakers are kept together where every language has at least two of them, and there
    are fewer parts where a language has fewer. Otherwise, or where speakers are not
    known (empty), single utterances are divided.

    Raises:
        RecipeError: A language has a single utterance.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    owners = [s or f"utterance {u}" for u, s in zip(utts, speakers, strict=True)]
    groups = Counter(lang for lang, _ in set(zip(langs, owners, strict=True))).values()
    by_speaker = min(groups) >= 2 and len(set(owners)) < len(utts)
    if not by_speaker:
        owners, groups = list(utts), Counter(langs).values()
    number = min(folds, *groups) if groups else 0
    if number < 2:
        raise RecipeError("a held-out split needs two utterances of every language")
    kind = StratifiedGroupKFold if by_speaker else StratifiedKFold
    splitter = kind(number, shuffle=True, random_state=seed)
    part = np.zeros(len(utts), np.int64)
    with warnings.catch_warnings():
        # A language with few speakers is said by the caller, with its number.
        warnings.simplefilter("ignore", UserWarning)
        rows = np.zeros((len(utts), 1))
        for index, (_, held_out) in enumerate(splitter.split(rows, langs, owners)):
            part[held_out] = index
    return Folds(part, owners, by_speaker)


def language_probe(
    vectors: ArrayLike, langs: Sequence[str], folds: Folds, seed: int = 0
) -> Measure:
    """Classify utterances by language, each by a probe that did not see its part.

    The probe is multinomial logistic regression on ``vectors [U, D]`` (such as the mean
    of a state over an utterance's frames), standardised with the mean and deviation of
    its training part, by L-BFGS with an L2 penalty of weight 1 on the summed loss.
    Accuracy is in per cent; its interval draws speakers where parts are of speakers.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    vectors, truth = np.asarray(vectors, np.float64), np.asarray(langs)
    right = np.zeros(len(truth), bool)
    # One thread: the same figures on every machine.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for index in range(folds.number):
            held_out = folds.part == index
            train, known = vectors[~held_out], truth[~held_out]
            if len(set(known)) < 2:
                right[held_out] = truth[held_out] == known[0]
                continue
            mean, deviation = train.mean(axis=0), train.std(axis=0)
            deviation[deviation == 0] = 1
            probe = LogisticRegression(max_iter=_ITERATIONS)
            probe.fit((train - mean) / deviation, known)
            found = probe.predict((vectors[held_out] - mean) / deviation)
            right[held_out] = found == truth[held_out]
    parts: dict[str, tuple[float, float]] = {}
    for owner, correct in zip(folds.owners, right.tolist(), strict=True):
        hits, count = parts.get(owner, (0, 0))
        parts[owner] = (hits + correct, count + 1)
    return Measure.of_rate(parts, seed=seed)


def chance_level(langs: Sequence[str], folds: Folds) -> float:
    """Accuracy, in per cent, of the most frequent language of each training part."""
    truth = np.asarray(langs)
    right = 0
    for index in range(folds.number):
        names, counts = np.unique(truth[folds.part != index], return_counts=True)
        right += int((truth[folds.part == index] == names[counts.argmax()]).sum())
    return 100 * right / len(truth)


def fisher_ratio(groups: Mapping[str, ArrayLike] | Sequence[ArrayLike]) -> float:
    r"""Separability of languages: scatter between them over scatter within.

    With vectors :math:`x_{cu} [D]` of utterance u in language c, means :math:`m_c` of
    each language and m of all,

    .. math::
        J = \frac{\sum_c n_c \lVert m_c - m \rVert^2}
                 {\sum_c \sum_u \lVert x_{cu} - m_c \rVert^2}

    the ratio of the traces of Fisher's scatter matrices. It does not change when all
    vectors are shifted, rotated or scaled.

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
