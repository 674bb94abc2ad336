"""Centroids that move with every block of frames, in torch, on a CPU or a GPU."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from espnet2_lamer.precision import exact_float32, single_thread

# Frames whose distances one core computes at a time. Part of the result: a matrix
# product of another size may round otherwise.
CHUNK = 1024


class Compute:
    """Where distances are computed: a GPU, or all cores of this machine.

    On a CPU frames are cut into pieces of one size, each for one thread, whose results
    are put together in order: bytes do not depend on the number of cores.
    """

    def __init__(self, device: str):
        self.device = device
        self._threads = None
        if device == "cpu" and torch.get_num_threads() > 1:
            self._threads = ThreadPoolExecutor(
                torch.get_num_threads(),
                initializer=torch.set_num_threads,
                initargs=(1,),
            )

    def tensor(self, values: np.ndarray) -> Tensor:
        """Copy an array to the device."""
        return torch.tensor(values, device=self.device)

    def pieces(self, x: Tensor) -> Sequence[Tensor]:
        """Cut frames ``[n, D]`` into what one core computes at a time."""
        return x.split(CHUNK) if self.device == "cpu" else [x]

    def each(self, function: Callable, *pieces: Sequence) -> list:
        """Call a function with each piece, side by side; results in order."""

        def call(*arguments):
            # Modes of torch are those of a thread.
            with torch.inference_mode():
                return function(*arguments)

        with single_thread(), exact_float32():
            run = self._threads.map if self._threads else map
            return list(run(call, *pieces))

    def nearest(self, x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
        """Nearest centroid of each frame ``[n, D]``, and its squared distance.

        ``|x - c|^2 = |x|^2 + |c|^2 - 2 x c``; of two centroids as near, either. Returns
        ``[n]`` int64 and ``[n]`` float32.
        """
        with single_thread():
            norms = centroids.square().sum(1)  # [K]
        minus_2c = (-2 * centroids).T.contiguous()  # [D, K]

        def of(piece: Tensor) -> tuple[Tensor, Tensor]:
            scores, units = torch.addmm(norms, piece, minus_2c).min(1)
            return units, (scores + piece.square().sum(1)).clamp(min=0)

        units, squares = zip(*self.each(of, self.pieces(x)), strict=True)
        return torch.cat(units), torch.cat(squares)


class Steps:
    """Mini-batch k-means (Sculley, 2010): each centroid is the mean of what it won.

    A block moves centroid c, which won ``counts`` frames so far, to
    ``(counts c + sum of the block's frames nearest to c) / (counts + their number)``,
    as scikit-learn's ``MiniBatchKMeans.partial_fit`` without reassignment of small
    clusters, but with one look at distances: those that decide who wins are also the
    inertia. Sums run over the frames of a cluster in their order, whatever the device
    and the number of cores.
    """

    def __init__(self, centroids: np.ndarray, counts: np.ndarray, device: str = "cpu"):
        self._compute = Compute(device)
        self._centroids = self._compute.tensor(centroids)  # [K, D]
        self._counts = self._compute.tensor(counts)  # [K]

    @property
    def centroids(self) -> np.ndarray:
        """Centroids now, ``[K, D]`` float32."""
        return self._centroids.cpu().numpy()

    @property
    def counts(self) -> np.ndarray:
        """Frames by which each centroid resists a move, ``[K]`` float32."""
        return self._counts.cpu().numpy()

    def step(self, block: np.ndarray) -> None:
        """Move the centroids by the frames ``[n, D]`` of a block."""
        with torch.inference_mode():
            x = self._compute.tensor(block)
            units, _ = self._compute.nearest(x, self._centroids)
            sums, won = sums_by_unit(x, units, len(self._counts))
            total = self._counts + won
            moved = self._centroids * self._counts[:, None] + sums
            # The kept share of a count may be less than one frame.
            mean = moved / torch.where(total > 0, total, 1.0)[:, None]
            self._centroids = torch.where(total[:, None] > 0, mean, self._centroids)
            self._counts = total

    def forget(self, share: float) -> None:
        """Keep this share of the counts: later frames move the centroids further."""
        self._counts = self._counts * share

    def inertia(self, frames: np.ndarray) -> float:
        """Mean squared distance of frames ``[n, D]`` to their nearest centroid."""
        _, squares = self._compute.nearest(
            self._compute.tensor(frames), self._centroids
        )
        return float(squares.cpu().numpy().mean(dtype=np.float64))


def sums_by_unit(x: Tensor, units: Tensor, n_clusters: int) -> tuple[Tensor, Tensor]:
    """Sum of the frames ``[n, D]`` of each unit ``[K, D]``, and their number ``[K]``.

    Each sum is taken by one thread in the frames' order; ``index_add`` on a GPU adds in
    any order, and a product with one-hot rows costs as much as all distances.
    """
    ordered, frames = units.sort(stable=True)
    numbers = torch.arange(n_clusters + 1, device=x.device)
    edges = torch.searchsorted(ordered, numbers)
    sums = embedding_bag(frames, x, edges[:-1], mode="sum")
    return sums, edges.diff().to(x.dtype)
