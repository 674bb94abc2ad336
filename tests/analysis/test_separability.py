"""The Fisher ratio equals the traces of scatter matrices."""

import numpy as np
import pytest

from espnet2_lamer.analysis.language_probe import fisher_ratio


def make(seed, distance=1.0, dim=6):
    rng = np.random.default_rng(seed)
    sizes = {"cmn": 7, "eng": 12, "yue": 4}
    return {
        lang: rng.normal(size=(n, dim)) + distance * rng.normal(size=dim)
        for lang, n in sizes.items()
    }


def by_matrices(groups):
    every = np.concatenate(list(groups.values()))
    between, within = np.zeros((6, 6)), np.zeros((6, 6))
    for x in groups.values():
        d = (x.mean(0) - every.mean(0))[:, None]
        between += len(x) * d @ d.T
        for row in x:
            e = (row - x.mean(0))[:, None]
            within += e @ e.T
    return np.trace(between) / np.trace(within)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_ratio_of_the_traces_of_the_scatter_matrices(seed):
    assert fisher_ratio(make(seed)) == pytest.approx(by_matrices(make(seed)))


def test_shift_rotation_and_scale_change_nothing():
    groups = make(5)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))
    moved = {lang: 3 * x @ rotation + 9 for lang, x in groups.items()}
    assert fisher_ratio(moved) == pytest.approx(fisher_ratio(groups))


def test_languages_further_apart_are_more_separable():
    ratios = [fisher_ratio(make(2, distance)) for distance in (0.0, 1.0, 3.0)]
    assert ratios == sorted(ratios)


def test_one_language_or_equal_utterances_are_refused():
    with pytest.raises(ValueError, match="two or more languages"):
        fisher_ratio({"eng": np.ones((3, 2))})
    with pytest.raises(ValueError, match="do not differ"):
        fisher_ratio({"eng": np.ones((3, 2)), "cmn": np.zeros((3, 2))})
