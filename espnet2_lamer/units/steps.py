"""One step of mini-batch k-means: scikit-learn's on the CPU, the same one on a GPU."""

from typing import Protocol

import numpy as np

from espnet2_lamer.precision import exact_float32
from espnet2_lamer.units.teacher import check_device


class Steps(Protocol):
    """Centroids that move with every block of frames.

    Attributes:
        centroids: ``[K, D]`` float32.
        counts: Frames that each centroid has won, ``[K]`` float32.
    """

    @property
    def centroids(self) -> np.ndarray:
        """Centroids now."""

    @property
    def counts(self) -> np.ndarray:
        """Frames each has won."""

    def step(self, block: np.ndarray) -> float:
        """Move the centroids; mean squared distance of ``[n, D]`` after that."""


class SklearnSteps:
    """``MiniBatchKMeans.partial_fit`` without reassignment of small clusters."""

    def __init__(self, centroids: np.ndarray, counts: np.ndarray, seed: int):
        from sklearn.cluster import MiniBatchKMeans

        self._model = MiniBatchKMeans(
            n_clusters=len(centroids),
            init=centroids,
            n_init=1,
            reassignment_ratio=0.0,
            compute_labels=True,  # after the step, for the inertia below
            random_state=seed,
        )
        # The first call sets scikit-learn's inner state up; what it learned is
        # replaced.
        self._model.partial_fit(centroids)
        self._model.cluster_centers_[:] = centroids
        self._model._counts[:] = counts

    @property
    def centroids(self) -> np.ndarray:
        """See :class:`Steps`."""
        return self._model.cluster_centers_

    @property
    def counts(self) -> np.ndarray:
        """See :class:`Steps`."""
        return self._model._counts

    def step(self, block: np.ndarray) -> float:
        """See :class:`Steps`."""
        self._model.partial_fit(block)
        # Its own inertia is a float32 sum over threads, in any order: a run that is
        # repeated could stop elsewhere.
        difference = block - self._model.cluster_centers_[self._model.labels_]
        return float(np.square(difference, out=difference).mean(0, np.float64).sum())


class TorchSteps:
    """The same step in torch, for a GPU.

    No other maintained library has it: k-means in cuML, cuVS and faiss moves centroids
    once per pass over one array and cannot be resumed; mini-batch k-means is an open
    request (NVIDIA/cuml#5079, NVIDIA/cuvs#1223). Sums over the frames of a cluster are
    a matrix product, since ``index_add`` on a GPU adds in any order.
    """

    def __init__(self, centroids: np.ndarray, counts: np.ndarray, device: str):
        import torch

        self._device = device
        self._centroids = torch.tensor(centroids, device=device)  # [K, D]
        self._counts = torch.tensor(counts, device=device)  # [K]

    @property
    def centroids(self) -> np.ndarray:
        """See :class:`Steps`."""
        return self._centroids.cpu().numpy()

    @property
    def counts(self) -> np.ndarray:
        """See :class:`Steps`."""
        return self._counts.cpu().numpy()

    def step(self, block: np.ndarray) -> float:
        """See :class:`Steps`."""
        import torch

        with exact_float32(), torch.inference_mode():
            x = torch.tensor(block, device=self._device)  # [n, D]
            units, _ = self._nearest(x)
            won = torch.nn.functional.one_hot(units, len(self._counts)).to(x.dtype)
            total = self._counts + won.sum(0)
            moved = self._centroids * self._counts[:, None] + won.T @ x
            self._centroids = torch.where(
                total[:, None] > 0,
                moved / total.clamp(min=1)[:, None],
                self._centroids,
            )
            self._counts = total
            _, distances = self._nearest(x)
            return float(distances.mean(dtype=torch.float64))

    def _nearest(self, x):
        """Nearest centroid of each frame ``[n]`` and its squared distance ``[n]``."""
        norms = self._centroids.square().sum(1)
        scores, units = (norms - 2 * (x @ self._centroids.T)).min(1)
        return units, (scores + x.square().sum(1)).clamp(min=0)


def make_steps(
    centroids: np.ndarray, counts: np.ndarray, seed: int, device: str = "cpu"
) -> Steps:
    """Go on from these centroids and frame counts on a device.

    Raises:
        RecipeError: There is no such device.
    """
    check_device(device)
    if device == "cpu":
        return SklearnSteps(centroids, counts, seed)
    return TorchSteps(centroids, counts, device)
