"""One step of mini-batch k-means against plain numpy and scikit-learn."""

from threading import Barrier

import numpy as np
import pytest
import torch
from sklearn.cluster import MiniBatchKMeans

from espnet2_lamer.units import steps as module
from espnet2_lamer.units.steps import Compute, Steps, sums_by_unit

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def blocks(number=12, size=300, dim=5, seed=0):
    rng = np.random.default_rng(seed)
    centres = 3 * rng.standard_normal((7, dim))
    for _ in range(number):
        noise = rng.standard_normal((size, dim))
        yield (centres[rng.integers(7, size=size)] + noise).astype(np.float32)


def plain_step(centroids, counts, block):
    """Sculley (2010), one frame after another, each with the rate 1 / count."""
    squares = ((block[:, None].astype(float) - centroids[None]) ** 2).sum(-1)
    centroids, counts = centroids.astype(float), counts.astype(float)
    for frame, unit in zip(block, squares.argmin(1), strict=True):
        counts[unit] += 1
        centroids[unit] += (frame - centroids[unit]) / counts[unit]
    return centroids, counts


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(3))
def test_a_step_is_scikit_learns(device, seed):
    start = next(blocks(1, seed=seed))[:20]
    # One centroid so far off that it never wins a frame.
    start[3] = 1000
    reference = MiniBatchKMeans(20, init=start, n_init=1, reassignment_ratio=0.0)
    ours = Steps(start, np.zeros(20, np.float32), device)
    for block in blocks(seed=seed):
        ours.step(block)
        reference.partial_fit(block)
        np.testing.assert_allclose(
            ours.centroids, reference.cluster_centers_, atol=2e-5
        )
        np.testing.assert_array_equal(ours.counts, reference._counts)
    assert ours.counts[3] == 0
    np.testing.assert_array_equal(ours.centroids[3], start[3])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 1.0])
def test_a_step_after_forgetting_moves_by_what_is_left_of_the_counts(device, share):
    start = next(blocks(1))[:9]
    start[3] = 1000
    counts = np.arange(9, dtype=np.float32)
    ours = Steps(start, counts, device)
    ours.forget(share)
    block = next(blocks(1, seed=1))
    ours.step(block)
    expected, total = plain_step(start, share * counts, block)
    np.testing.assert_allclose(ours.centroids, expected, atol=2e-4)
    np.testing.assert_allclose(ours.counts, total, rtol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [3, 300, 3000])
def test_units_and_inertia_are_those_of_the_plain_formula(device, size):
    centroids = next(blocks(1))[:20]
    frames = next(blocks(1, size, seed=2))
    squares = ((frames[:, None].astype(float) - centroids[None]) ** 2).sum(-1)
    compute = Compute(device)
    units, found = compute.nearest(compute.tensor(frames), compute.tensor(centroids))
    np.testing.assert_array_equal(units.cpu().numpy(), squares.argmin(1))
    np.testing.assert_allclose(found.cpu().numpy(), squares.min(1), atol=1e-4)
    inertia = Steps(centroids, np.zeros(20, np.float32), device).inertia(frames)
    assert inertia == pytest.approx(squares.min(1).mean(), rel=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_sums_of_units_are_plain_sums(device):
    frames = torch.tensor(next(blocks(1)), device=device)
    units = torch.tensor(np.random.default_rng(0).integers(6, size=300), device=device)
    units[units == 4] = 5
    sums, won = sums_by_unit(frames, units, 8)
    for unit in range(8):
        mine = frames[units == unit].double()
        assert won[unit] == len(mine)
        torch.testing.assert_close(
            sums[unit].double(), mine.sum(0), atol=1e-4, rtol=1e-5
        )


@pytest.mark.parametrize("dim", [5, 64])
def test_bytes_do_not_depend_on_the_number_of_threads(dim):
    parts = list(blocks(4, 5000, dim))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            steps = Steps(parts[0][:50], np.zeros(50, np.float32))
            for block in parts:
                steps.step(block)
            results.append((steps.centroids.tobytes(), steps.inertia(parts[0])))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1] == results[2]


def test_all_threads_work_on_a_large_block(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(module, "CHUNK", 10)
    try:
        torch.set_num_threads(3)
        compute = Compute("cpu")
        pieces = compute.pieces(torch.zeros(25, 2))
        assert [len(piece) for piece in pieces] == [10, 10, 5]
        # Each waits for the others: done only if all three run at once.
        barrier = Barrier(3)

        def meet(piece):
            barrier.wait(timeout=60)
            return len(piece), torch.get_num_threads()

        assert compute.each(meet, pieces) == [(10, 1), (10, 1), (5, 1)]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("device", DEVICES)
def test_steps_go_on_from_saved_centroids_and_counts(device):
    parts = list(blocks())
    whole = Steps(parts[0][:20], np.zeros(20, np.float32), device)
    for block in parts:
        whole.step(block)
    first = Steps(parts[0][:20], np.zeros(20, np.float32), device)
    for block in parts[:5]:
        first.step(block)
    second = Steps(first.centroids.copy(), first.counts.copy(), device)
    for block in parts[5:]:
        second.step(block)
    np.testing.assert_array_equal(second.centroids, whole.centroids)
    np.testing.assert_array_equal(second.counts, whole.counts)
