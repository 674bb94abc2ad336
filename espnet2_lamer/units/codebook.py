"""The codebook: centroids, where they come from, and nearest-centroid assignment."""

import json
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.precision import exact_float32, single_thread

METADATA_KEYS = (
    "teacher",
    "teacher_sha256",
    "layer",
    "normalisation",
    "K",
    "seed",
    "frames",
    "inertia",
)


@dataclass(frozen=True)
class Codebook:
    """K-means centroids and their origin.

    Attributes:
        centroids: ``[K, D]`` float32.
        metadata: ``METADATA_KEYS``: teacher source and hash, layer, normalisation, K,
            seed, frames learned from and mean squared distance per frame.
        sha256: Hash of the file it was read from.
        path: That file; a codebook with one is pickled as its name, and read again by
            each worker once instead of travelling with every task.
    """

    centroids: np.ndarray
    metadata: dict[str, Any]
    sha256: str
    path: str = ""
    _tensors: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __reduce__(self):
        """Pickle by name where there is one."""
        if self.path:
            return _load_known, (os.path.abspath(self.path), self.sha256)
        return Codebook, (self.centroids, self.metadata, self.sha256)

    def assign(self, x) -> np.ndarray:
        """Nearest centroid of each frame: ``argmin_k |c_k|^2 - 2 x c_k``.

        Args:
            x: Features ``[T, D]``, an array or a tensor on any device.

        Returns:
            Units ``[T]``, int64; the lower unit wins a tie.
        """
        import torch

        if not torch.is_tensor(x):
            x = torch.tensor(np.asarray(x, dtype=np.float32))
        if x.device not in self._tensors:
            centroids = torch.tensor(self.centroids, device=x.device)
            self._tensors[x.device] = (
                centroids.square().sum(1),  # [K]
                (-2 * centroids).T.contiguous(),  # [D, K]
            )
        norms, minus_2c = self._tensors[x.device]
        with single_thread(), exact_float32(), torch.inference_mode():
            # Blocks bound the memory of the [T, K] distances of a long utterance.
            units = [
                torch.addmm(norms, block, minus_2c).argmin(1) for block in x.split(4096)
            ]
            return torch.cat(units).cpu().numpy()

    def check_teacher(self, identity: dict[str, Any], dim: int, path: str) -> None:
        """Raise RecipeError unless the codebook was learned on this teacher."""
        found = {
            "sha256": identity["sha256"],
            "layer": identity["layer"],
            "normalisation": identity["normalisation"],
            "dim": dim,
        }
        expected = {
            "sha256": self.metadata["teacher_sha256"],
            "layer": self.metadata["layer"],
            "normalisation": self.metadata["normalisation"],
            "dim": self.centroids.shape[1],
        }
        for key, value in expected.items():
            if found[key] != value:
                raise RecipeError(
                    f"{path}: learned on teacher {self.metadata['teacher']} with "
                    f"{key} {value!r}, but teacher {identity['source']} has {key} "
                    f"{found[key]!r}; use the same teacher and layer, or learn a new "
                    "codebook"
                )


def save_codebook(
    path: str | Path, centroids: np.ndarray, metadata: dict[str, Any]
) -> None:
    """Atomically write ``codebook.npz``; equal input gives equal bytes."""
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez(
            handle,
            centroids=np.asarray(centroids, dtype=np.float32),
            metadata=np.array(json.dumps(metadata, sort_keys=True)),
        )


def load_codebook(path: str | Path) -> Codebook:
    """Read and validate a codebook; nothing in it is unpickled.

    Raises:
        RecipeError: The file is missing, not a codebook, or holds a wrong shape,
            non-finite values or incomplete metadata.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"{path}: codebook not found; run learn_kmeans")
    try:
        with np.load(path, allow_pickle=False) as data:
            centroids, metadata = data["centroids"], json.loads(str(data["metadata"]))
    except Exception as error:  # zip, zlib, numpy and JSON each have their own
        raise RecipeError(
            f"{path}: not a readable codebook ({error}); expected an npz with arrays "
            "'centroids' and 'metadata', without pickled objects"
        ) from error
    if not isinstance(metadata, dict) or not set(METADATA_KEYS) <= set(metadata):
        raise RecipeError(
            f"{path}: metadata {metadata!r}, expected the keys "
            f"{', '.join(METADATA_KEYS)}; run learn_kmeans again"
        )
    if (
        centroids.dtype != np.float32
        or centroids.ndim != 2
        or len(centroids) != metadata["K"]
        or not np.isfinite(centroids).all()
    ):
        raise RecipeError(
            f"{path}: centroids are {centroids.dtype} {centroids.shape}, expected "
            f"finite float32 [{metadata['K']}, D]; run learn_kmeans again"
        )
    return Codebook(centroids, metadata, sha256_file(path), str(path))


@lru_cache(maxsize=1)
def _load_known(path: str, sha256: str) -> Codebook:
    """Read a codebook in a worker process, once; it must be the same file."""
    book = load_codebook(path)
    if book.sha256 != sha256:
        raise RecipeError(
            f"{path}: SHA-256 is {book.sha256}, but the run was started with {sha256}; "
            "the codebook changed meanwhile, run the same command again"
        )
    return book
