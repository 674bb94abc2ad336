"""Where k-means starts: greedy k-means++ in torch, on a CPU or a GPU."""

import math

import numpy as np
import torch
from torch import Tensor

from espnet2_lamer.units.steps import Compute

# Probabilities are multiples of this share of the largest: whole numbers are summed
# exactly, so that a draw does not depend on how a device adds.
_GRAIN = 2.0**-31


def kmeans_plusplus(
    frames: np.ndarray, n_clusters: int, seed: int, device: str = "cpu"
) -> np.ndarray:
    """Choose ``n_clusters`` of the frames ``[n, D]``, far from one another.

    Greedy k-means++ (Arthur and Vassilvitskii, 2007, sections 2.2 and 5), as
    scikit-learn's: the first is drawn uniformly; for each next one ``2 + floor(ln K)``
    candidates are drawn with probability proportional to the squared distance to the
    nearest that is chosen, and the one that leaves the lowest sum of these is taken.
    All random numbers are the CPU's: the same are drawn for every device.

    Returns:
        ``[K, D]`` float32.
    """
    compute = Compute(device)
    generator = np.random.default_rng(seed)
    candidates = 2 + int(math.log(n_clusters))
    chosen = torch.empty(n_clusters, dtype=torch.long, device=device)
    chosen[0] = int(generator.integers(len(frames)))
    uniform = compute.tensor(generator.random((n_clusters - 1, candidates)))
    pieces = compute.pieces(compute.tensor(frames))
    norms = [piece.square().sum(1) for piece in pieces]
    x = torch.cat(list(pieces)) if len(pieces) > 1 else pieces[0]
    # Squared distance of each frame to the nearest that is chosen.
    closest = compute.each(
        lambda piece, norm: _squares(piece, norm, x[chosen[:1]])[0], pieces, norms
    )
    for number in range(1, n_clusters):
        drawn = draw(torch.cat(closest), uniform[number - 1])  # [candidates]
        centres = x[drawn]

        def left(piece: Tensor, norm: Tensor, near: Tensor, centres=centres):
            squares = torch.minimum(_squares(piece, norm, centres), near)
            return squares, squares.sum(1, dtype=torch.float64)

        squares, sums = zip(*compute.each(left, pieces, norms, closest), strict=True)
        best = torch.stack(sums).sum(0).argmin()
        chosen[number] = drawn[best]
        closest = [part[best] for part in squares]
    return x[chosen].cpu().numpy()


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw indices with probability proportional to weights ``[n]``.

    ``uniform [m]`` are numbers from 0 to 1, float64; returns ``[m]``. Where all weights
    are 0 the last index is drawn.
    """
    unit = (weights.max() * _GRAIN).clamp(min=torch.finfo(weights.dtype).tiny)
    ends = (weights / unit).long().cumsum(0)
    drawn = torch.searchsorted(ends, (uniform * ends[-1]).long(), right=True)
    return drawn.clamp(max=len(weights) - 1)


def _squares(x: Tensor, norms: Tensor, centres: Tensor) -> Tensor:
    """Squared distances ``[m, n]`` of frames ``[n, D]`` to centres ``[m, D]``."""
    far = torch.addmm(norms, centres, x.T, alpha=-2)
    return (far + centres.square().sum(1)[:, None]).clamp_(min=0)
