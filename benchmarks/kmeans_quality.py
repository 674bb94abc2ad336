"""Starts, forgetting and faiss by the inertia of held-out speech, for ``kmeans``."""

import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from tqdm import tqdm

from benchmarks.report import Table
from espnet2_lamer.units import kmeans
from espnet2_lamer.units.codebook import mean_inertia
from espnet2_lamer.units.features import FeatureStore
from espnet2_lamer.units.starts import kmeans_plusplus

# Of so many utterances one is held out.
HELD_OUT = 10
# Passes of the form that keeps its counts, by then as good as it gets.
LONG = 40
# faiss's own default of Lloyd's iterations, and fewer.
ITERATIONS = (10, 25)


def moving_frames(number: int, dim: int) -> np.ndarray:
    """Frames ``[number, dim]`` that move from target to target, as a teacher's do."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((dim, dim)) * np.geomspace(1, 0.1, dim)
    target, x, rows = np.zeros(dim), np.zeros(dim), np.empty((number, dim))
    for row in rows:
        if rng.random() < 0.1:
            target = 2 * rng.standard_normal(dim)
        x = 0.7 * x + 0.3 * target + 0.2 * rng.standard_normal(dim)
        row[:] = x
    return (rows @ mix.T).astype(np.float32)


def held_out(directory: str, options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Frames to learn from, and those of other utterances."""
    if not directory:
        frames = moving_frames(options.frames[0], min(options.dim, 96))
        end = len(frames) // HELD_OUT
        return frames[end:], frames[:end]
    store = FeatureStore(directory)
    index = json.loads((Path(directory) / "index.json").read_text(encoding="utf-8"))
    lengths = [utt[3] for shard in index["shards"] for utt in shard["utts"]]
    out = np.repeat(np.arange(len(lengths)) % HELD_OUT == 0, lengths)
    learn, others = np.flatnonzero(~out), np.flatnonzero(out)
    return store.take(learn), store.take(others)


def write_frames(directory: Path, frames: np.ndarray) -> Path:
    """Write a feature directory of one shard."""
    directory.mkdir()
    frames.astype("<f4").tofile(directory / "00000.bin")
    shard = {"file": "00000.bin", "frames": len(frames), "sha256": "", "utts": []}
    index = {"dim": frames.shape[1], "dtype": "float32", "shards": [shard]}
    (directory / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return directory


def ours(store: Path, device: str, keep: float, **settings: Any) -> Callable:
    """``learn_kmeans`` with a share of the counts that rounds keep."""

    def learn(seed: int) -> tuple[np.ndarray, str]:
        config = kmeans.KmeansConfig(seed=seed, **settings)
        with mock.patch.object(kmeans, "KEEP", keep):
            book = kmeans.learn_kmeans(store, store / "c.npz", config, device=device)
        quality = json.loads((store / "c.quality.json").read_text(encoding="utf-8"))
        return book.centroids, f"{quality['passes']}"

    return learn


def of_faiss(
    frames: np.ndarray, clusters: int, iterations: int, plusplus: bool
) -> Callable:
    """Learn by faiss on frames in memory, from its start or from k-means++."""
    import faiss

    def learn(seed: int) -> tuple[np.ndarray, str]:
        model = faiss.Kmeans(
            frames.shape[1],
            clusters,
            niter=iterations,
            seed=seed + 1,
            # It takes 256 frames of a cluster otherwise.
            max_points_per_centroid=len(frames),
        )
        start = None
        if plusplus:
            rng = np.random.default_rng(seed)
            number = min(len(frames), 30_000)
            sample = frames[np.sort(rng.choice(len(frames), number, replace=False))]
            start = kmeans_plusplus(sample, clusters, seed)
        model.train(frames, init_centroids=start)
        return model.centroids, f"{iterations}"

    return learn


def forms(
    store: Path, frames: np.ndarray, options: Any, device: str
) -> dict[str, Callable]:
    """What is compared, by name: a function of the seed."""
    settings = {"n_clusters": options.clusters, "batch_size": options.batch}
    found = {
        f"ours, starts {count}": ours(
            store, device, kmeans.KEEP, n_init=count, **settings
        )
        for count in options.counts
    }
    long = {"max_passes": LONG, "min_gain": -1.0}
    for count in (options.counts[0], options.counts[-1]):
        found[f"counts kept, {LONG} passes, starts {count}"] = ours(
            store, device, 1.0, n_init=count, **settings, **long
        )
    if importlib.util.find_spec("faiss") and device == "cpu":
        for iterations in ITERATIONS:
            for plusplus in (False, True):
                start = "k-means++" if plusplus else "its own start"
                found[f"faiss, {iterations} iterations, {start}"] = of_faiss(
                    frames, options.clusters, iterations, plusplus
                )
    return found


def compare(directory: str, options: Any, device: str) -> Table:
    """Inertia of held-out utterances and CPU seconds of every form."""
    frames, others = held_out(directory, options)
    shape = f"{len(frames)} x {frames.shape[1]}"
    table = Table(
        f"{Path(directory).name or 'frames that move'}: {shape} frames, "
        f"K = {options.clusters}",
        ["form", "held-out inertia", "deviation", "against ours", "CPU s", "passes"],
    )
    with tempfile.TemporaryDirectory() as name:
        store = write_frames(Path(name) / "features", frames)
        functions = forms(store, frames, options, device)
        values: dict[str, list] = {form: [] for form in functions}
        # In turns: what else the machine does meets all alike.
        for seed in tqdm(range(options.seeds), "seeds", leave=False, disable=None):
            for form, learn in functions.items():
                started = time.process_time()
                centroids, passes = learn(seed)
                seconds = time.process_time() - started
                inertia = mean_inertia(others, centroids)
                values[form].append((inertia, seconds, int(passes)))
    base = np.array(next(iter(values.values())))[:, 0]
    for form, rows in values.items():
        inertia, seconds, passes = np.array(rows).T
        table.rows.append(
            [
                form,
                f"{inertia.mean():.5g}",
                f"{inertia.std(ddof=1):.2g}",
                f"{np.mean(inertia / base) - 1:+.2%}",
                f"{np.median(seconds):.2f}",
                f"{passes.mean():.3g}",
            ]
        )
    return table


def run(options: Any, device: str) -> list[str | Table]:
    """Compare on every store; returns text and tables."""
    there = "is" if importlib.util.find_spec("faiss") else "is not"
    explanation = (
        f"Mean squared distance of held-out utterances (every {HELD_OUT}th; of frames "
        f"that move, the first tenth) to their centroids, over {options.seeds} seeds, "
        "and the process's CPU seconds, quality report included for ours. `counts "
        "kept` is plain mini-batch k-means, scikit-learn's rule, which moves centroids "
        f"less with every pass. faiss {there} installed here (`pip install faiss-cpu`);"
        " it learns from all frames in memory."
    )
    return [explanation, *(compare(store, options, device) for store in options.stores)]
