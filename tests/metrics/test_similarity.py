"""Linear CKA has the invariances of Kornblith et al. and can be accumulated."""

import numpy as np
import pytest

from espnet2_lamer.metrics.similarity import LinearCKA


def linear_cka(x, y):
    cka = LinearCKA()
    cka.add(x, y)
    return cka.value()


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 12)) @ rng.normal(size=(12, 12)) + 3
    return x, np.tanh(x[:, :8]) + rng.normal(size=(400, 8))


def hsic(k, m):
    centre = np.eye(len(k)) - 1 / len(k)
    return np.trace(k @ centre @ m @ centre)


def test_it_equals_the_kernel_form(features):
    # Kornblith et al. 2019, Eq. 3: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)).
    x, y = features
    k, m = x @ x.T, y @ y.T
    expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-9)


def test_rotation_scale_and_shift_change_nothing(features):
    x, y = features
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
    changed = linear_cka(-7 * x @ rotation + 100, y)
    assert changed == pytest.approx(linear_cka(x, y), rel=1e-9)
    assert linear_cka(x, 0.5 * x @ rotation - 4) == pytest.approx(1)


def test_an_invertible_linear_map_does_change_it(features):
    x, _ = features
    assert linear_cka(x, x @ np.diag(np.geomspace(1, 1e3, 12))) < 0.9


def test_independent_features_are_dissimilar():
    rng = np.random.default_rng(2)
    assert linear_cka(rng.normal(size=(5000, 4)), rng.normal(size=(5000, 4))) < 0.01


def test_accumulated_over_utterances_it_equals_the_whole(features):
    x, y = features
    cka = LinearCKA()
    for start, stop in [(0, 3), (3, 3), (3, 250), (250, 400)]:
        cka.add(x[start:stop], y[start:stop])
    assert cka.frames == 400
    assert cka.value() == pytest.approx(linear_cka(x, y), rel=1e-9)


def test_a_large_offset_costs_no_precision(features):
    x, y = features
    assert linear_cka(x + 1e6, y) == pytest.approx(linear_cka(x, y), rel=1e-6)


def test_features_that_do_not_fit_are_refused(features):
    x, y = features
    cka = LinearCKA()
    with pytest.raises(ValueError, match="no frames"):
        cka.value()
    with pytest.raises(ValueError, match=r"\(400, 12\) and \(399, 8\)"):
        cka.add(x, y[:-1])
    with pytest.raises(ValueError, match="constant"):
        linear_cka(x, np.ones((400, 2)))
