"""Learn a codebook from features on disk: mini-batch k-means that can be resumed."""

import json
import logging
import sys
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path
from espnet2_lamer.fileio.hashing import sha256_value
from espnet2_lamer.units.codebook import Codebook, load_codebook, save_codebook
from espnet2_lamer.units.features import FeatureStore

SAVE_EVERY = 200


@dataclass(frozen=True)
class KmeansConfig:
    """Settings of HuBERT's k-means (fairseq's, which torchaudio and ESPnet share).

    Attributes:
        n_clusters: Number of units ``K``.
        seed: Seeds the sample, the starts and the order of frames.
        n_init: k-means++ starts; the best on a validation block is kept.
        batch_size: Frames in a step.
        max_passes: Passes over the features at most.
        max_no_improvement: Steps without a lower smoothed inertia before stopping.
    """

    n_clusters: int = 1000
    seed: int = 0
    n_init: int = 20
    batch_size: int = 10000
    max_passes: int = 100
    max_no_improvement: int = 100


@dataclass
class _Progress:
    """Where the loop is; together with the centroids all that resuming needs."""

    epoch: int = 0
    block: int = 0
    steps: int = 0
    smoothed: float | None = None
    best: float | None = None
    no_improvement: int = 0


def learn_kmeans(
    features: str | Path, output: str | Path, config: KmeansConfig
) -> Codebook:
    """Learn centroids and write them to ``output``.

    Steps are scikit-learn's ``MiniBatchKMeans.partial_fit`` without reassignment of
    small clusters, in memory of one block. The loop stops as scikit-learn's ``fit``
    does: when the exponentially smoothed inertia of the batches has not improved for
    ``max_no_improvement`` steps. A run that was killed goes on from
    ``<output>.state.npz`` and ends with the same bytes.

    Args:
        features: Directory of :func:`~espnet2_lamer.units.features.dump_features`.
        output: ``codebook.npz``.
        config: Settings.

    Raises:
        RecipeError: There are fewer frames than clusters, or the features are broken.
    """
    if config.n_clusters < 1 or config.n_init < 1:
        raise RecipeError(
            f"--n_clusters {config.n_clusters} --n_init {config.n_init}: expected 1 or "
            "more"
        )
    store = FeatureStore(features)
    if store.frames < config.n_clusters:
        raise RecipeError(
            f"{features}: {store.frames} frames for {config.n_clusters} clusters; "
            "sample more hours (--hours_per_lang) or lower --n_clusters"
        )
    output = Path(output)
    state_path = output.with_name(output.name + ".state.npz")
    run = sha256_value([asdict(config), store.sha256])

    validation, start = _samples(store, config)
    centroids, counts, progress = _load_state(state_path, run) or (
        _best_start(start, validation, config),
        np.zeros(config.n_clusters, dtype=np.float32),
        _Progress(),
    )
    del start
    model = _resume_model(centroids, counts, config)
    _loop(store, model, progress, config, state_path, run)

    centroids = model.cluster_centers_
    teacher = store.teacher
    metadata = {
        "teacher": teacher.get("source"),
        "teacher_sha256": teacher.get("sha256"),
        "layer": teacher.get("layer"),
        "normalisation": teacher.get("normalisation"),
        "K": config.n_clusters,
        "seed": config.seed,
        "frames": store.frames,
        "inertia": _inertia(validation, centroids),
    }
    save_codebook(output, centroids, metadata)
    state_path.unlink(missing_ok=True)
    logging.info(
        "%s: %d clusters, %d steps, inertia %.4f per frame",
        output,
        config.n_clusters,
        progress.steps,
        metadata["inertia"],
    )
    return load_codebook(output)


def _samples(
    store: FeatureStore, config: KmeansConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Validation block and the sample for the starts, disjoint when there is enough."""
    rng = np.random.default_rng([config.seed, store.frames])
    start_size = max(3 * config.batch_size, 3 * config.n_clusters)
    if store.frames <= start_size + config.batch_size:
        everything = store.take(np.arange(store.frames))
        return everything, everything
    picked = rng.choice(
        store.frames, start_size + config.batch_size, replace=False, shuffle=True
    )
    return store.take(picked[: config.batch_size]), store.take(
        picked[config.batch_size :]
    )


def _best_start(
    sample: np.ndarray, validation: np.ndarray, config: KmeansConfig
) -> np.ndarray:
    """The k-means++ start with the lowest inertia on the validation block."""
    from sklearn.cluster import kmeans_plusplus
    from threadpoolctl import threadpool_limits
    from tqdm import trange

    best, best_inertia = None, np.inf
    seeds = np.random.SeedSequence(config.seed).generate_state(config.n_init)
    # One BLAS thread: distances must not depend on the machine.
    with threadpool_limits(1):
        for number in trange(
            config.n_init, desc="k-means++", disable=not sys.stderr.isatty()
        ):
            centroids, _ = kmeans_plusplus(
                sample, config.n_clusters, random_state=int(seeds[number])
            )
            inertia = _inertia(validation, centroids)
            if inertia < best_inertia:
                best, best_inertia = centroids, inertia
    return best


def _inertia(frames: np.ndarray, centroids: np.ndarray) -> float:
    """Mean squared distance of frames to their nearest centroid."""
    units = Codebook(np.asarray(centroids, np.float32), {}, "").assign(frames)
    squares = np.square(frames - centroids[units], dtype=np.float64)
    return float(squares.sum(1).mean())


def _resume_model(centroids: np.ndarray, counts: np.ndarray, config: KmeansConfig):
    """A MiniBatchKMeans that goes on from these centroids and frame counts."""
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(
        n_clusters=config.n_clusters,
        init=centroids,
        n_init=1,
        batch_size=config.batch_size,
        reassignment_ratio=0.0,
        compute_labels=True,  # gives the batch inertia
        random_state=config.seed,
    )
    # The first call sets scikit-learn's inner state up; what it learned is replaced.
    model.partial_fit(centroids)
    model.cluster_centers_[:] = centroids
    model._counts[:] = counts
    return model


def _loop(
    store: FeatureStore,
    model,
    progress: _Progress,
    config: KmeansConfig,
    state_path: Path,
    run: str,
) -> None:
    from tqdm import tqdm

    # scikit-learn's smoothing: a window of half the frames of the store.
    alpha = min(1.0, 2 * config.batch_size / (store.frames + 1))
    bar = tqdm(desc="k-means", initial=progress.steps, disable=not sys.stderr.isatty())
    while progress.epoch < config.max_passes:
        order = store.blocks(config.batch_size, config.seed, progress.epoch)
        while progress.block < len(order):
            if progress.steps % SAVE_EVERY == 0:
                _save_state(state_path, run, model, progress)
            block = order[progress.block]
            model.partial_fit(block)
            progress.block += 1
            progress.steps += 1
            bar.update()
            if _converged(progress, model.inertia_ / len(block), alpha, config):
                return
        progress.epoch, progress.block = progress.epoch + 1, 0


def _converged(
    progress: _Progress, inertia: float, alpha: float, config: KmeansConfig
) -> bool:
    # Threads may sum in any order: what they can change must not decide the stop.
    inertia = float(f"{inertia:.9g}")
    if progress.smoothed is None:
        progress.smoothed = inertia
    progress.smoothed += alpha * (inertia - progress.smoothed)
    if progress.best is None or progress.smoothed < progress.best:
        progress.best, progress.no_improvement = progress.smoothed, 0
    else:
        progress.no_improvement += 1
    return progress.no_improvement >= config.max_no_improvement


def _save_state(path: Path, run: str, model, progress: _Progress) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez(
            handle,
            centroids=model.cluster_centers_,
            counts=model._counts,
            progress=np.array(json.dumps(asdict(progress))),
            run=np.array(run),
        )


def _load_state(path: Path, run: str) -> tuple[Any, Any, _Progress] | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as state:
            if str(state["run"]) != run:
                logging.warning("%s: of other features or settings, not used", path)
                return None
            progress = _Progress(**json.loads(str(state["progress"])))
            logging.info("%s: going on after %d steps", path, progress.steps)
            return state["centroids"], state["counts"], progress
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        logging.warning("%s: not readable, starting over", path)
        return None
