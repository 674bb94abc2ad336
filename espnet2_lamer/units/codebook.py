"""The codebook: centroids, where they come from, how good they are, assignment."""

import json
import logging
import os
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.precision import exact_float32, single_thread

if TYPE_CHECKING:
    from espnet2_lamer.units.teacher import Teacher

# The cost grows with the square of the sample: 10 s of one core for 768 dimensions.
SILHOUETTE_FRAMES = 10_000
_TEACHER_KEYS = ("teacher", "teacher_sha256", "layer", "normalisation")
METADATA_KEYS = (*_TEACHER_KEYS, "K", "seed", "frames", "inertia")


@dataclass(frozen=True)
class Codebook:
    """K-means centroids and their origin.

    One with a path is pickled as its name, and read again by each worker once instead
    of travelling with every task.
    """

    centroids: np.ndarray  # [K, D] float32
    # METADATA_KEYS: frames are those learned from, inertia the mean squared distance.
    metadata: dict[str, Any]
    sha256: str  # of the file it was read from
    path: str = ""  # that file
    _tensors: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __reduce__(self):
        """Pickle by name where there is one."""
        if self.path:
            return _load_known, (os.path.abspath(self.path), self.sha256)
        return Codebook, (self.centroids, self.metadata, self.sha256)

    def assign(self, x) -> np.ndarray:
        """Nearest centroids ``[T]`` of ``[T, D]``: ``argmin_k |c_k|^2 - 2 x c_k``.

        Frames are an array or a tensor on any device; the lower unit wins a tie.
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
        expected = {**self.metadata, "dim": self.centroids.shape[1]}
        found = {**teacher_metadata(identity), "dim": dim}
        for key in ("teacher_sha256", "layer", "normalisation", "dim"):
            if expected[key] != found[key]:
                name = key.removeprefix("teacher_")
                raise RecipeError(
                    f"{path}: learned on teacher {expected['teacher']} with {name} "
                    f"{expected[key]!r}, but teacher {found['teacher']} has {name} "
                    f"{found[key]!r}; use the same teacher and layer, or learn a new "
                    "codebook"
                )


def teacher_metadata(identity: dict[str, Any]) -> dict[str, Any]:
    """What a codebook's metadata say of the teacher that it was learned on."""
    found = (identity.get(k) for k in ("source", "sha256", "layer", "normalisation"))
    return dict(zip(_TEACHER_KEYS, found, strict=True))


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
    """Read a codebook; nothing in it is unpickled.

    Raises:
        RecipeError: It is missing, or no codebook: shape, values or metadata.
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


def mean_inertia(
    frames: np.ndarray, centroids: np.ndarray, units: np.ndarray | None = None
) -> float:
    """Mean squared distance of frames ``[n, D]`` to their nearest centroid."""
    if units is None:
        units = Codebook(np.asarray(centroids, np.float32), {}, "").assign(frames)
    squares = np.square(frames - centroids[units], dtype=np.float64)
    return float(squares.sum(1).mean())


def codebook_quality(
    centroids: np.ndarray, counts: np.ndarray, frames: np.ndarray
) -> dict[str, Any]:
    """Measure centroids ``[K, D]`` on a held-out sample ``frames [n, D]``.

    Returns:
        ``K``; ``inertia`` (mean squared distance of the sample to its centroids) and
        ``explained``, the share of the sample's variance that the centroids account
        for; ``dead`` centroids, which by ``counts [K]`` won no frame;
        ``used_in_sample``; and ``silhouette``, mean (b - a) / max(a, b) with a the mean
        distance within the own cluster and b to the next one, on
        ``silhouette_frames`` of the sample (None where these are in one cluster).
    """
    import sklearn
    from sklearn.metrics import silhouette_score
    from threadpoolctl import threadpool_limits

    units = Codebook(np.asarray(centroids, np.float32), {}, "").assign(frames)
    silhouette = None
    step = -(-len(frames) // SILHOUETTE_FRAMES)
    some, of_some = frames[::step], units[::step]
    if 1 < len(np.unique(of_some)) < len(of_some):
        # Distances of all pairs, in blocks of so many MiB. Most of the work is not the
        # product that BLAS could share, and its threads wait awake meanwhile.
        with sklearn.config_context(working_memory=128), threadpool_limits(1):
            silhouette = float(silhouette_score(some, of_some))
    inertia = mean_inertia(frames, centroids, units)
    variance = float(frames.var(axis=0, dtype=np.float64).sum())
    return {
        "K": len(centroids),
        "inertia": inertia,
        "explained": 1 - inertia / variance if variance else 0.0,
        "dead": int((counts == 0).sum()),
        "sample": len(frames),
        "used_in_sample": len(np.unique(units)),
        "silhouette": silhouette,
        "silhouette_frames": len(of_some),
    }


def import_kmeans(
    path: str | Path, teacher: "Teacher", output: str | Path, trust_pickle: bool = False
) -> Codebook:
    """Turn a joblib file of a scikit-learn (MiniBatch)KMeans into a codebook.

    Such a file is a pickle: opening it runs what its author put in. It does not say
    which teacher and layer it was learned on; only the dimension can be checked.

    Raises:
        RecipeError: Not trusted, not readable, not a k-means, or of another dimension
            than the teacher's features.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"--joblib {path}: file not found")
    if not trust_pickle:
        raise RecipeError(
            f"--joblib {path}: reading this file unpickles it, which runs any code its "
            "author put in; if you trust where it comes from, add --trust_pickle"
        )
    import joblib
    from sklearn.exceptions import InconsistentVersionWarning

    try:
        with warnings.catch_warnings():
            # Of the model only its centroids are used, and those do not change.
            warnings.simplefilter("ignore", InconsistentVersionWarning)
            model = joblib.load(path)
    except Exception as error:  # a pickle can fail in any way, and so can code in it
        raise RecipeError(
            f"--joblib {path}: cannot be unpickled ({type(error).__name__}: {error}); "
            "expected what joblib.dump wrote for a scikit-learn k-means"
        ) from error
    centroids = np.asarray(getattr(model, "cluster_centers_", None))
    if centroids.ndim != 2 or not np.issubdtype(centroids.dtype, np.floating):
        raise RecipeError(
            f"--joblib {path}: found a {type(model).__name__}, expected a fitted "
            "KMeans or MiniBatchKMeans of scikit-learn"
        )
    if not np.isfinite(centroids).all():
        raise RecipeError(f"--joblib {path}: has centroids that are not finite")
    if centroids.shape[1] != teacher.dim:
        raise RecipeError(
            f"--joblib {path}: centroids of dimension {centroids.shape[1]}, but "
            f"teacher {teacher.identity['source']} layer {teacher.identity['layer']} "
            f"gives {teacher.dim}; name the teacher and layer it was learned on"
        )
    seed = getattr(model, "random_state", None)
    metadata = {
        **teacher_metadata(teacher.identity),
        "K": len(centroids),
        "seed": int(seed) if isinstance(seed, int | np.integer) else None,
        # Not in the file, or of the author's last batch only.
        "frames": None,
        "inertia": None,
        "imported_from": path.name,
        "imported_sha256": sha256_file(path),
    }
    save_codebook(output, centroids, metadata)
    logging.info("%s: %d centroids of %s", output, len(centroids), path)
    return load_codebook(output)
