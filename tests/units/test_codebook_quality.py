"""Codebook figures against plain formulas."""

import numpy as np
import pytest

from espnet2_lamer.units import codebook as module
from espnet2_lamer.units.codebook import codebook_quality


def data(seed, frames=60, clusters=5, dim=3):
    rng = np.random.default_rng(seed)
    centroids = rng.standard_normal((clusters, dim)).astype(np.float32)
    return centroids, rng.standard_normal((frames, dim)).astype(np.float32)


def silhouette(frames, units):
    """Rousseeuw (1987): mean of (b - a) / max(a, b); 0 for a cluster of one."""
    distances = np.sqrt(((frames[:, None] - frames[None]) ** 2).sum(-1))
    values = []
    for i, unit in enumerate(units):
        own = (units == unit) & (np.arange(len(units)) != i)
        if not own.any():
            values.append(0.0)
            continue
        a = distances[i, own].mean()
        b = min(distances[i, units == u].mean() for u in set(units) - {unit})
        values.append((b - a) / max(a, b))
    return np.mean(values)


@pytest.mark.parametrize("seed", range(4))
def test_figures_follow_their_formulas(seed):
    centroids, frames = data(seed)
    distances = ((frames[:, None].astype(float) - centroids[None]) ** 2).sum(-1)
    units = distances.argmin(1)
    report = codebook_quality(centroids, np.array([3, 0, 1, 0, 9]), frames)
    inertia = distances.min(1).mean()
    spread = ((frames - frames.mean(0)) ** 2).sum(1).mean()
    assert report["inertia"] == pytest.approx(inertia, rel=1e-5)
    assert report["explained"] == pytest.approx(1 - inertia / spread, rel=1e-4)
    assert report["dead"] == 2
    assert report["used_in_sample"] == len(set(units))
    assert report["silhouette"] == pytest.approx(silhouette(frames, units), abs=1e-5)
    assert report["sample"] == report["silhouette_frames"] == 60


def test_the_silhouette_of_a_large_sample_is_that_of_a_part(monkeypatch):
    centroids, frames = data(0)
    monkeypatch.setattr(module, "SILHOUETTE_FRAMES", 20)
    report = codebook_quality(centroids, np.ones(5), frames)
    part = frames[::3]
    units = ((part[:, None] - centroids[None]) ** 2).sum(-1).argmin(1)
    assert report["silhouette_frames"] == 20
    assert report["silhouette"] == pytest.approx(silhouette(part, units), abs=1e-5)


def test_a_sample_in_one_cluster_has_no_silhouette():
    frames = np.ones((10, 3), np.float32)
    report = codebook_quality(np.eye(3, dtype=np.float32), np.ones(3), frames)
    assert report["silhouette"] is None
    assert report["used_in_sample"] == 1
