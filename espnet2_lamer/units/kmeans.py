"""Learn a codebook from features on disk: mini-batch k-means that can be resumed."""

import json
import logging
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path
from espnet2_lamer.fileio.hashing import sha256_value
from espnet2_lamer.parallel import check_processes
from espnet2_lamer.units.codebook import (
    Codebook,
    codebook_quality,
    load_codebook,
    mean_inertia,
    save_codebook,
    teacher_metadata,
)
from espnet2_lamer.units.features import FeatureStore
from espnet2_lamer.units.quality import figures, write_quality
from espnet2_lamer.units.starts import kmeans_plusplus
from espnet2_lamer.units.steps import Steps
from espnet2_lamer.units.teacher import check_device

SAVE_EVERY = 200
# Frames of a round for each cluster, at most. The mean of n frames of a cluster adds
# 1/n of their spread to the inertia: more would not be seen.
ROUND_FRAMES = 5000
# What a new round keeps of the counts. With all of it, as in scikit-learn, later frames
# hardly move a centroid: 40 passes end above 8 that forget (benchmarks, kmeans).
KEEP = 0.1


@dataclass(frozen=True)
class KmeansConfig:
    """Settings of k-means.

    A round is a pass over the features, or 5000 frames per cluster of a large store.
    """

    n_clusters: int = 1000  # number of units K
    seed: int = 0  # of the sample, the starts and the order of frames
    n_init: int = 1  # k-means++ starts; the best on a validation block is kept
    batch_size: int = 10000  # frames in a step
    max_passes: int = 100  # over the features
    # Share by which a round must lower the validation block's inertia to go on.
    min_gain: float = 0.001


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
    rounds: int = 0
    inertia: float | None = None  # of the validation block, after the last round

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

    Steps are those of :class:`~espnet2_lamer.units.steps.Steps`, in memory of one
    block. After each round the inertia of a validation block, ``batch_size`` frames of
    the store, is logged; the loop stops when a round lowered it by less than
    ``min_gain``. A run that was killed goes on from ``<output>.state.npz`` and ends
    with the same bytes, which depend neither on ``nj`` nor on the number of cores.
    ``codebook.quality.json`` and ``.md`` hold
    :func:`~espnet2_lamer.units.codebook.codebook_quality`.

    On ``cpu`` several starts are looked for by ``nj`` processes, steps use all cores;
    on ``cuda`` all of it is done by this process on the GPU.

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
        _find_start(validation, start, state, config, nj, device)
    del start
    steps = Steps(state.centroids, state.counts, device)
    _loop(store, steps, state, config, validation)
    quality = codebook_quality(steps.centroids, steps.counts, validation)
    passes = state.epoch + bool(state.block)
    quality |= {"steps": state.steps, "passes": passes, "rounds": state.rounds}
    metadata = {
        **teacher_metadata(store.teacher),
        "K": config.n_clusters,
        "seed": config.seed,
        "frames": store.frames,
        "inertia": quality["inertia"],
    }
    write_quality(quality, output.with_suffix(".quality.json"))
    save_codebook(output, steps.centroids, metadata)
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
    device: str,
) -> None:
    """Find the k-means++ start with the lowest inertia on the validation block.

    ``state`` holds the best one so far; it is saved after each.
    """
    seeds = np.random.SeedSequence(config.seed).generate_state(config.n_init)
    counts = {"total": config.n_init, "initial": state.starts}
    left = [int(seed) for seed in seeds[state.starts :]]
    found = _starts(validation, start, config.n_clusters, left, nj, device)
    for centroids, inertia in tqdm(found, "k-means++", disable=None, **counts):
        if state.start_inertia is None or inertia < state.start_inertia:
            state.centroids, state.start_inertia = centroids, inertia
        state.starts += 1
        state.save()


def _starts(
    validation: np.ndarray,
    start: np.ndarray,
    n_clusters: int,
    seeds: list[int],
    nj: int,
    device: str,
) -> Iterator[tuple[np.ndarray, float]]:
    """Yield starts in the order of seeds: of two equal ones the first is kept."""
    if device != "cpu" or len(seeds) == 1:
        where = "on the GPU" if device != "cpu" else "on all its cores"
        text = "k-means++: %d to go, by this process %s; --nj and --dask share several"
        logging.info(text + " starts on CPUs", len(seeds), where)
        for seed in seeds:
            yield _start(validation, start, n_clusters, seed, device)
        return
    with Parallel(n_jobs=nj, return_as="generator", pre_dispatch="all") as parallel:
        yield from parallel(
            delayed(_start)(validation, start, n_clusters, seed, device)
            for seed in seeds
        )


def _start(
    validation: np.ndarray, start: np.ndarray, n_clusters: int, seed: int, device: str
) -> tuple[np.ndarray, float]:
    centroids = kmeans_plusplus(start, n_clusters, seed, device)
    return centroids, mean_inertia(validation, centroids)


def _loop(
    store: FeatureStore,
    model: Steps,
    state: _State,
    config: KmeansConfig,
    validation: np.ndarray,
) -> None:
    enough = -(-ROUND_FRAMES * config.n_clusters // config.batch_size)
    length = min(store.number_of_blocks(config.batch_size), enough)
    bar = tqdm(desc="k-means", initial=state.steps, disable=None)
    while state.epoch < config.max_passes:
        where = state.epoch, state.block
        for block in store.blocks(config.batch_size, config.seed, *where):
            if state.steps % SAVE_EVERY == 0:
                state.centroids, state.counts = model.centroids, model.counts
                state.save()
            model.step(block)
            state.block += 1
            state.steps += 1
            bar.update()
            if state.steps % length == 0:
                if _converged(state, model.inertia(validation), config.min_gain):
                    return
                model.forget(KEEP)
        state.epoch, state.block = state.epoch + 1, 0
    text = "k-means: stopped after %d passes, the most it makes, before it converged"
    logging.warning(text, config.max_passes)


def _converged(state: _State, inertia: float, min_gain: float) -> bool:
    """Note the inertia after a round, and tell whether it was the last one."""
    before, state.inertia = state.inertia or state.start_inertia, inertia
    state.rounds += 1
    gain = 1 - inertia / before if before else 0.0
    text = "k-means: round %d, %d steps: inertia %.5g, %.2f %% lower"
    logging.info(text, state.rounds, state.steps, inertia, 100 * gain)
    return gain < min_gain
