"""Learn a codebook from features on disk: mini-batch k-means that can be resumed."""

import json
import logging
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed
from tqdm import tqdm

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path
from espnet2_lamer.fileio.hashing import sha256_value
from espnet2_lamer.parallel import check_processes
from espnet2_lamer.precision import exact_float32
from espnet2_lamer.units.codebook import (
    Codebook,
    codebook_quality,
    load_codebook,
    mean_inertia,
    save_codebook,
    teacher_metadata,
)
from espnet2_lamer.units.features import FeatureStore
from espnet2_lamer.units.labels import figures, write_quality
from espnet2_lamer.units.teacher import check_device

SAVE_EVERY = 200


@dataclass(frozen=True)
class KmeansConfig:
    """Settings of HuBERT's k-means (fairseq's, which torchaudio and ESPnet share)."""

    n_clusters: int = 1000  # number of units K
    seed: int = 0  # of the sample, the starts and the order of frames
    n_init: int = 20  # k-means++ starts; the best on a validation block is kept
    batch_size: int = 10000  # frames in a step
    max_passes: int = 100  # over the features
    # Steps without a lower smoothed inertia before stopping.
    max_no_improvement: int = 100


@dataclass
class _State:
    """What a killed run goes on from, unless it is of another ``run`` (a hash)."""

    path: Path
    run: str
    centroids: np.ndarray  # [K, D] float32
    counts: np.ndarray  # [K] float32
    starts: int = 0
    start_inertia: float | None = None
    epoch: int = 0
    block: int = 0
    steps: int = 0
    smoothed: float | None = None
    best: float | None = None
    no_improvement: int = 0

    def save(self) -> None:
        progress = dict(vars(self))
        path, run = progress.pop("path"), progress.pop("run")
        arrays = {key: progress.pop(key) for key in ("centroids", "counts")}
        texts = {"progress": np.array(json.dumps(progress)), "run": np.array(run)}
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            np.savez(handle, **arrays, **texts)

    def load(self) -> None:
        """Take over what the file says, if it is there and of this run."""
        if not self.path.is_file():
            return
        try:
            with np.load(self.path, allow_pickle=False) as file:
                if str(file["run"]) != self.run:
                    text = "%s: of other features or settings, not used"
                    logging.warning(text, self.path)
                    return
                found = self.run, file["centroids"], file["counts"]
                progress = json.loads(str(file["progress"]))
            vars(self).update(vars(_State(self.path, *found, **progress)))
            done = f"{self.starts} starts and {self.steps} steps"
            logging.info("%s: going on after %s", self.path, done)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            logging.warning("%s: not readable, starting over", self.path)


def learn_kmeans(
    features: str | Path,
    output: str | Path,
    config: KmeansConfig,
    nj: int = 1,
    device: str = "cpu",
) -> Codebook:
    """Learn centroids of ``dump_features`` and write them to ``output``, an npz.

    Steps are scikit-learn's ``MiniBatchKMeans.partial_fit`` without reassignment of
    small clusters, in memory of one block. The loop stops as scikit-learn's ``fit``
    does: when the exponentially smoothed inertia of the batches has not improved for
    ``max_no_improvement`` steps. A run that was killed goes on from
    ``<output>.state.npz`` and ends with the same bytes. ``codebook.quality.json`` and
    ``.md`` hold :func:`~espnet2_lamer.units.codebook.codebook_quality`.

    ``nj`` processes look for the start, which does not depend on them; ``device`` is
    ``cpu``, or ``cuda`` for the same steps in torch on a GPU.

    Raises:
        RecipeError: There are fewer frames than clusters, the features are broken,
            there is no such device, or ``nj`` is 0.
    """
    if config.n_clusters < 1 or config.n_init < 1:
        raise RecipeError(
            f"--n_clusters {config.n_clusters} --n_init {config.n_init}: expected 1 or "
            "more"
        )
    check_processes(nj)
    check_device(device)
    store = FeatureStore(features)
    if store.frames < config.n_clusters:
        raise RecipeError(
            f"{features}: {store.frames} frames for {config.n_clusters} clusters; "
            "sample more hours (--hours_per_lang) or lower --n_clusters"
        )
    output = Path(output)
    state = _State(
        output.with_name(output.name + ".state.npz"),
        sha256_value([asdict(config), device, store.sha256]),
        np.empty((config.n_clusters, store.dim), np.float32),
        np.zeros(config.n_clusters, np.float32),
    )
    state.load()
    validation, start = _samples(store, config)
    if state.starts < config.n_init:
        _find_start(validation, start, state, config, nj)
    del start
    model = make_steps(state.centroids, state.counts, config.seed, device)
    _loop(store, model, state, config)
    quality = codebook_quality(model.centroids, model.counts, validation)
    passes = state.epoch + bool(state.block)
    quality |= {"steps": state.steps, "passes": passes}
    metadata = {
        **teacher_metadata(store.teacher),
        "K": config.n_clusters,
        "seed": config.seed,
        "frames": store.frames,
        "inertia": quality["inertia"],
    }
    write_quality(quality, output.with_suffix(".quality.json"))
    save_codebook(output, model.centroids, metadata)
    state.path.unlink(missing_ok=True)
    logging.info("%s: %s", output, figures(quality))
    return load_codebook(output)


def _samples(
    store: FeatureStore, config: KmeansConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Validation block and the sample for the starts, disjoint when there is enough."""
    size = config.batch_size
    both = size + 3 * max(size, config.n_clusters)
    if store.frames <= both:
        everything = store.take(np.arange(store.frames))
        return everything, everything
    rng = np.random.default_rng([config.seed, store.frames])
    picked = rng.choice(store.frames, both, replace=False, shuffle=True)
    return store.take(picked[:size]), store.take(picked[size:])


def _find_start(
    validation: np.ndarray,
    start: np.ndarray,
    state: _State,
    config: KmeansConfig,
    nj: int,
) -> None:
    """Find the k-means++ start with the lowest inertia on the validation block.

    ``state`` holds the best one so far; it is saved after each.
    """
    seeds = np.random.SeedSequence(config.seed).generate_state(config.n_init)
    counts = {"total": config.n_init, "initial": state.starts}
    # In order, so that of two equal ones the same is kept however many run at a time.
    parallel = Parallel(n_jobs=nj, return_as="generator", pre_dispatch="all")
    with parallel:
        found = parallel(
            delayed(_start)(validation, start, config.n_clusters, int(seed))
            for seed in seeds[state.starts :]
        )
        for centroids, inertia in tqdm(found, "k-means++", disable=None, **counts):
            if state.start_inertia is None or inertia < state.start_inertia:
                state.centroids, state.start_inertia = centroids, inertia
            state.starts += 1
            state.save()


def _start(
    validation: np.ndarray, start: np.ndarray, n_clusters: int, seed: int
) -> tuple[np.ndarray, float]:
    from sklearn.cluster import kmeans_plusplus
    from threadpoolctl import threadpool_limits

    # One BLAS thread: distances must not depend on the machine.
    with threadpool_limits(1):
        centroids, _ = kmeans_plusplus(start, n_clusters, random_state=seed)
        return centroids, mean_inertia(validation, centroids)


def _loop(
    store: FeatureStore,
    model: "SklearnSteps | TorchSteps",
    state: _State,
    config: KmeansConfig,
) -> None:
    # scikit-learn's smoothing: a window of half the frames of the store.
    alpha = min(1.0, 2 * config.batch_size / (store.frames + 1))
    bar = tqdm(desc="k-means", initial=state.steps, disable=None)
    while state.epoch < config.max_passes:
        where = state.epoch, state.block
        for block in store.blocks(config.batch_size, config.seed, *where):
            if state.steps % SAVE_EVERY == 0:
                state.centroids, state.counts = model.centroids, model.counts
                state.save()
            inertia = model.step(block)
            state.block += 1
            state.steps += 1
            bar.update()
            if _converged(state, inertia, alpha, config.max_no_improvement):
                return
        state.epoch, state.block = state.epoch + 1, 0


def _converged(state: _State, inertia: float, alpha: float, patience: int) -> bool:
    if state.smoothed is None:
        state.smoothed = inertia
    state.smoothed += alpha * (inertia - state.smoothed)
    if state.best is None or state.smoothed < state.best:
        state.best, state.no_improvement = state.smoothed, 0
    else:
        state.no_improvement += 1
    return state.no_improvement >= patience


class SklearnSteps:
    """Centroids that move with every block of frames.

    ``MiniBatchKMeans.partial_fit`` without reassignment of small clusters.
    """

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
        """Centroids now, ``[K, D]`` float32."""
        return self._model.cluster_centers_

    @property
    def counts(self) -> np.ndarray:
        """Frames that each has won, ``[K]`` float32."""
        return self._model._counts

    def step(self, block: np.ndarray) -> float:
        """Move the centroids; mean squared distance of ``[n, D]`` after that."""
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
        self._centroids = torch.tensor(centroids, device=device)  # [K, D]
        self._counts = torch.tensor(counts, device=device)  # [K]

    centroids = property(lambda self: self._centroids.cpu().numpy())
    counts = property(lambda self: self._counts.cpu().numpy())

    def step(self, block: np.ndarray) -> float:
        """As :class:`SklearnSteps`."""
        with exact_float32(), torch.inference_mode():
            x = torch.tensor(block, device=self._counts.device)  # [n, D]
            units, _ = self._nearest(x)
            won = torch.nn.functional.one_hot(units, len(self._counts)).to(x.dtype)
            total = self._counts + won.sum(0)
            moved = self._centroids * self._counts[:, None] + won.T @ x
            mean = moved / total.clamp(min=1)[:, None]
            self._centroids = torch.where(total[:, None] > 0, mean, self._centroids)
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
) -> SklearnSteps | TorchSteps:
    """Go on from these centroids and frame counts on a device."""
    check_device(device)
    if device == "cpu":
        return SklearnSteps(centroids, counts, seed)
    return TorchSteps(centroids, counts, device)
