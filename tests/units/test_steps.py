"""One step of mini-batch k-means: scikit-learn's and the one for a GPU."""

import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.units.kmeans import SklearnSteps, TorchSteps, make_steps

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def blocks(number=12, size=300, dim=5, seed=0):
    rng = np.random.default_rng(seed)
    centres = 3 * rng.standard_normal((7, dim))
    for _ in range(number):
        noise = rng.standard_normal((size, dim))
        yield (centres[rng.integers(7, size=size)] + noise).astype(np.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(3))
def test_the_step_for_a_gpu_is_scikit_learns(device, seed):
    start = next(blocks(1, seed=seed))[:20]
    # One centroid so far off that it never wins a frame.
    start[3] = 1000
    zeros = np.zeros(20, np.float32)
    reference = SklearnSteps(start, zeros, seed=0)
    ours = TorchSteps(start, zeros, device)
    for block in blocks(seed=seed):
        inertia = ours.step(block)
        assert inertia == pytest.approx(reference.step(block), rel=1e-5)
        np.testing.assert_allclose(ours.centroids, reference.centroids, atol=2e-5)
        np.testing.assert_array_equal(ours.counts, reference.counts)
    assert ours.counts[3] == 0
    np.testing.assert_array_equal(ours.centroids[3], start[3])


def test_the_cpu_step_is_partial_fit_itself():
    start = next(blocks(1))[:20]
    model = MiniBatchKMeans(20, init=start, n_init=1, reassignment_ratio=0.0)
    steps = make_steps(start, np.zeros(20, np.float32), seed=0)
    for block in blocks():
        model.partial_fit(block)
        inertia = steps.step(block)
        np.testing.assert_array_equal(steps.centroids, model.cluster_centers_)
        assert inertia == pytest.approx(model.inertia_ / len(block))


@pytest.mark.parametrize("device", [None, *DEVICES])
def test_steps_go_on_from_saved_centroids_and_counts(device):
    def make(centroids, counts):
        if device is None:
            return SklearnSteps(centroids, counts, seed=0)
        return TorchSteps(centroids, counts, device)

    parts = list(blocks())
    start = parts[0][:20]
    whole = make(start, np.zeros(20, np.float32))
    for block in parts:
        whole.step(block)
    first = make(start, np.zeros(20, np.float32))
    for block in parts[:5]:
        first.step(block)
    second = make(first.centroids.copy(), first.counts.copy())
    for block in parts[5:]:
        second.step(block)
    np.testing.assert_array_equal(second.centroids, whole.centroids)
    np.testing.assert_array_equal(second.counts, whole.counts)


def test_an_unknown_device_is_refused():
    with pytest.raises(RecipeError, match="--device tpu"):
        make_steps(np.zeros((2, 2), np.float32), np.zeros(2, np.float32), 0, "tpu")
