"""How good a codebook is, measured on frames it was not started from."""

from typing import Any

import numpy as np

from espnet2_lamer.units.codebook import Codebook

# Its cost grows with the square of the sample: 10 s of one core for 768 dimensions.
SILHOUETTE_FRAMES = 10_000


def mean_inertia(frames: np.ndarray, centroids: np.ndarray) -> float:
    """Mean squared distance of frames ``[n, D]`` to their nearest centroid."""
    units = Codebook(np.asarray(centroids, np.float32), {}, "").assign(frames)
    squares = np.square(frames - centroids[units], dtype=np.float64)
    return float(squares.sum(1).mean())


def codebook_quality(
    centroids: np.ndarray, counts: np.ndarray, frames: np.ndarray
) -> dict[str, Any]:
    """Measure centroids.

    Args:
        centroids: ``[K, D]``.
        counts: Frames that each centroid won while it learned, ``[K]``.
        frames: Held-out sample ``[n, D]``.

    Returns:
        ``K``; ``inertia`` (mean squared distance of the sample to its centroids) and
        ``explained``, the share of the sample's variance that the centroids account
        for; ``dead`` centroids, which never won a frame; ``used_in_sample``; and the
        ``silhouette``, mean (b - a) / max(a, b) with a the mean distance within the own
        cluster and b to the next one, on ``silhouette_frames`` of the sample (None when
        they fall into fewer than two clusters).
    """
    import sklearn
    from sklearn.metrics import silhouette_score

    units = Codebook(np.asarray(centroids, np.float32), {}, "").assign(frames)
    used = len(np.unique(units))
    silhouette = None
    some = slice(None, None, -(-len(frames) // SILHOUETTE_FRAMES))
    if 1 < len(np.unique(units[some])) < len(units[some]):
        # Distances of all pairs, in blocks of so many MiB.
        with sklearn.config_context(working_memory=128):
            silhouette = float(silhouette_score(frames[some], units[some]))
    inertia = mean_inertia(frames, centroids)
    variance = float(frames.var(axis=0, dtype=np.float64).sum())
    return {
        "K": len(centroids),
        "inertia": inertia,
        "explained": 1 - inertia / variance if variance else 0.0,
        "dead": int((counts == 0).sum()),
        "sample": len(frames),
        "used_in_sample": used,
        "silhouette": silhouette,
        "silhouette_frames": len(units[some]),
    }
