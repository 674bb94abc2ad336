"""Section ``kmeans``: memory, speed and inertia of k-means from disk."""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import kmeans_quality, memory
from benchmarks.options import option
from benchmarks.report import Table, verdict

TITLE = "k-means from disk"
DEVICES = ("cpu", "cuda")
# Mebibytes: 2 GiB.
LIMIT = 2048


@dataclass(frozen=True)
class Options:
    """Sizes; the defaults are 2 and 167 hours of a HuBERT-Base's frames."""

    frames: tuple[int, ...] = option((300_000, 30_000_000), "frames in the store")
    dim: int = option(768, "dimensions of a frame")
    units: int = option(1000, "clusters K")
    shard: int = option(100_000, "frames of the random shard that is listed again")
    starts: int = option(1, "k-means++ starts")
    batch: int = option(10_000, "frames in a step")
    passes: int = option(1, "most passes over the frames")
    stores: tuple[str, ...] = option(
        ("",), "feature directories of the comparison; empty: frames that move"
    )
    clusters: int = option(100, "clusters of the comparison")
    counts: tuple[int, ...] = option((1, 2, 3, 5, 20), "starts that are compared")
    seeds: int = option(5, "seeds of the comparison")
    fresh: int = option(1, "1: a new process per store; 0: in this one")


QUICK = Options(
    *((2000, 4000), 8, 5, 500, 2, 400, 1),
    **{"clusters": 5, "counts": (1, 2), "seeds": 2, "fresh": 0},
)


def write_store(directory: Path, frames: int, options: Options) -> Path:
    """Write a feature directory that lists one random shard until it has ``frames``."""
    directory.mkdir()
    generator = np.random.default_rng(0)
    with open(directory / "00000.bin", "wb") as handle:
        for start in range(0, options.shard, 10_000):
            size = (min(10_000, options.shard - start), options.dim)
            handle.write(generator.standard_normal(size, dtype=np.float32).tobytes())
    shard = {"file": "00000.bin", "frames": options.shard, "sha256": "", "utts": []}
    index = {
        "dim": options.dim,
        "dtype": "float32",
        "shards": [shard] * (frames // options.shard),
    }
    (directory / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return directory


def learn(features: Path, options: Options, device: str) -> dict[str, Any]:
    """Learn a codebook; returns seconds, steps, and the peak of anonymous memory."""
    from espnet2_lamer.units.kmeans import KmeansConfig, learn_kmeans

    config = KmeansConfig(
        options.units,
        n_init=options.starts,
        batch_size=options.batch,
        max_passes=options.passes,
        min_gain=-1.0,
    )
    output = features / "codebook.npz"
    with memory.AnonymousPeak() as peak:
        started = time.perf_counter()
        learn_kmeans(features, output, config, device=device)
        seconds = time.perf_counter() - started
    quality = json.loads(output.with_suffix(".quality.json").read_text())
    return {"seconds": seconds, "steps": quality["steps"], "bytes": peak.bytes}


def run(options: Options, device: str) -> list[str | Table]:
    """Measure every size; returns text and a table."""
    table = Table(
        f"K = {options.units}, {options.dim} dimensions, float32",
        [
            *("frames", "features", "steps", "seconds", "frames per s"),
            *("peak RssAnon MiB", "target"),
        ],
    )
    for frames in tqdm(options.frames, desc="kmeans", leave=False, disable=None):
        with tempfile.TemporaryDirectory() as name:
            features = write_store(Path(name) / "features", frames, options)
            found = memory.call(
                learn, features, options, device, fresh=bool(options.fresh)
            )
        table.rows.append(
            [
                f"{frames // options.shard * options.shard}",
                f"{frames * options.dim * 4 / 1e9:.3g} GB",
                str(found["steps"]),
                f"{found['seconds']:.0f}",
                f"{found['steps'] * options.batch / found['seconds']:.0f}",
                f"{found['bytes'] / 2**20:.0f}",
                verdict(found["bytes"] / 2**20, "<=", LIMIT),
            ]
        )
    explanation = (
        f"`learn_kmeans` on a store whose index lists one shard of {options.shard} "
        f"random frames again and again: {options.starts} k-means++ start(s), steps of "
        f"{options.batch} frames, {options.passes} pass(es), and the quality report; "
        "seconds are for all of it. RssAnon is the process's anonymous memory, looked "
        "at every 5 ms. scikit-learn's `fit` would hold all features in memory."
    )
    return [explanation, table, *kmeans_quality.run(options, device)]
