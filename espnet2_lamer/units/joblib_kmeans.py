"""Import a k-means that fairseq's or ESPnet's scripts saved with joblib."""

import logging
import warnings
from pathlib import Path

import numpy as np

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.units.codebook import Codebook, load_codebook, save_codebook
from espnet2_lamer.units.teacher import Teacher


def import_kmeans(
    path: str | Path, teacher: Teacher, output: str | Path, trust_pickle: bool = False
) -> Codebook:
    """Turn a joblib file of a scikit-learn (MiniBatch)KMeans into a codebook.

    Such a file is a pickle: opening it runs what its author put in. The result,
    ``codebook.npz``, holds no pickle. The file does not say which teacher and layer it
    was learned on; only the dimension can be checked.

    Args:
        path: File of fairseq's ``learn_kmeans.py`` or of ESPnet's.
        teacher: The teacher, at the layer, that the k-means was learned on.
        output: ``codebook.npz``.
        trust_pickle: Say that the file's origin is trusted.

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
    model = _unpickle(path)
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
        "teacher": teacher.identity["source"],
        "teacher_sha256": teacher.identity["sha256"],
        "layer": teacher.identity["layer"],
        "normalisation": teacher.identity["normalisation"],
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


def _unpickle(path: Path):
    import joblib
    from sklearn.exceptions import InconsistentVersionWarning

    try:
        with warnings.catch_warnings():
            # Of the model only its centroids are used, and those do not change.
            warnings.simplefilter("ignore", InconsistentVersionWarning)
            return joblib.load(path)
    # A pickle can fail in any way, and so can the code in it.
    except Exception as error:
        raise RecipeError(
            f"--joblib {path}: cannot be unpickled ({type(error).__name__}: {error}); "
            "expected what joblib.dump wrote for a scikit-learn k-means"
        ) from error
