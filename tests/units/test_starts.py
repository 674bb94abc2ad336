"""k-means++ against its definition: what is drawn, what is taken, how good it is."""

import math

import numpy as np
import pytest
import torch
from sklearn.cluster import kmeans_plusplus as scikit_learns

from espnet2_lamer.units.starts import draw, kmeans_plusplus

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def frames(number=400, dim=3, seed=0):
    rng = np.random.default_rng(seed)
    centres = 3 * rng.standard_normal((9, dim))
    noise = rng.standard_normal((number, dim))
    return (centres[rng.integers(9, size=number)] + noise).astype(np.float32)


def plain(x, n_clusters, seed):
    """The definition, frame by frame, in float64."""
    rng = np.random.default_rng(seed)
    chosen = [int(rng.integers(len(x)))]
    uniform = rng.random((n_clusters - 1, 2 + int(math.log(n_clusters))))
    x = x.astype(float)
    for numbers in uniform:
        near = np.min([((x - x[c]) ** 2).sum(1) for c in chosen], axis=0)
        ends = np.cumsum(near)
        drawn = [int(np.argmax(ends > u * ends[-1])) for u in numbers]
        left = [np.minimum(near, ((x - x[c]) ** 2).sum(1)).sum() for c in drawn]
        chosen.append(drawn[int(np.argmin(left))])
    return chosen


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_clusters", [1, 2, 30])
def test_the_frames_that_the_definition_chooses_are_chosen(device, seed, n_clusters):
    # More than one piece of those that cores compute.
    x = frames(2500, seed=seed)
    found = kmeans_plusplus(x, n_clusters, seed, device)
    np.testing.assert_array_equal(found, x[plain(x, n_clusters, seed)])


@pytest.mark.parametrize("device", DEVICES)
def test_indices_are_drawn_in_proportion_to_their_weights(device):
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 4.0, 0.0], device=device)
    # Numbers that divide 0 to 1 evenly: shares are exact.
    uniform = torch.arange(8000, dtype=torch.float64, device=device) / 8000
    drawn = draw(weights, uniform).cpu().numpy()
    assert np.bincount(drawn, minlength=6).tolist() == [0, 3000, 0, 1000, 4000, 0]


@pytest.mark.parametrize("device", DEVICES)
def test_frames_that_are_all_alike_have_a_start(device):
    x = np.ones((5, 2), np.float32)
    np.testing.assert_array_equal(kmeans_plusplus(x, 3, 0, device), x[:3])


def test_bytes_do_not_depend_on_the_number_of_threads():
    x = frames(5000, dim=40)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(kmeans_plusplus(x, 60, 0).tobytes())
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_starts_are_as_good_as_scikit_learns():
    x = frames(1000, dim=6)

    def cost(centroids):
        return ((x[:, None] - centroids[None]) ** 2).sum(-1).min(1).mean()

    ours = [cost(kmeans_plusplus(x, 25, seed)) for seed in range(12)]
    theirs = [cost(scikit_learns(x, 25, random_state=seed)[0]) for seed in range(12)]
    error = math.hypot(*(np.std(c) / math.sqrt(12) for c in (ours, theirs)))
    assert abs(np.mean(ours) - np.mean(theirs)) < 3 * error
