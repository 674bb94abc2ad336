"""Section ``units``: the stock way to units against ours, on the same speech."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import kaldiio
import numpy as np
from tqdm import tqdm

from benchmarks import memory
from benchmarks.options import option
from benchmarks.report import Table, megabytes
from benchmarks.stock_setup import RATE, SIZES
from benchmarks.units_setup import write_speech, write_teacher
from espnet2_lamer.data.speech import read_speech, read_wav_scp
from espnet2_lamer.units.assign import assign_units
from espnet2_lamer.units.codebook import load_codebook, mean_inertia
from espnet2_lamer.units.features import dump_features
from espnet2_lamer.units.kmeans import KmeansConfig, learn_kmeans
from espnet2_lamer.units.teacher import load_teacher

TITLE = "from speech to units, stock path against ours"
DEVICES = ("cpu",)
STOCK, OURS = "stock", "ours"
# fairseq's and ESPnet's scripts: 20 starts, 100 steps without a lower inertia.
STOCK_STARTS, STOCK_PATIENCE = 20, 100
# The paper clusters 50 h of each of three languages, and labels 547 h.
SHARE = 150 / 547


@dataclass(frozen=True)
class Options:
    """Sizes."""

    size: str = option("base", f"teacher, of {', '.join(SIZES)}")
    layer: int = option(9, "its layer")
    units: int = option(500, "units K")
    utterances: int = option(120, "utterances")
    shortest: float = option(2.0, "seconds of the shortest utterance")
    longest: float = option(18.0, "seconds of the longest utterance")
    share: float = option(SHARE, "share of the speech that ours clusters")
    fresh: int = option(1, "1: a new process per step; 0: in this one")


QUICK = Options("tiny", 2, 5, 8, 0.3, 1.0, 0.5, fresh=0)


def stock_dump(root: Path, options: Options) -> None:
    """Features of every utterance into a Kaldi archive."""
    teacher = load_teacher(str(root / "teacher"), options.layer)
    folder = root / STOCK / "features"
    folder.mkdir(parents=True)
    with kaldiio.WriteHelper(f"ark,scp:{folder}/feats.ark,{folder}/feats.scp") as file:
        for utt, path in read_wav_scp(root / "wav.scp").items():
            file[utt] = teacher.forward(read_speech(utt, path))


def _stored(root: Path):
    return kaldiio.load_scp_sequential(str(root / STOCK / "features" / "feats.scp"))


def stock_fit(root: Path, options: Options) -> None:
    """All features into memory, one array of them, scikit-learn's ``fit``."""
    from sklearn.cluster import MiniBatchKMeans

    features = np.concatenate([matrix for _, matrix in _stored(root)])
    ours = KmeansConfig(options.units)
    model = MiniBatchKMeans(
        ours.n_clusters,
        n_init=STOCK_STARTS,
        batch_size=ours.batch_size,
        max_iter=ours.max_passes,
        max_no_improvement=STOCK_PATIENCE,
        reassignment_ratio=0.0,
        tol=0.0,
        compute_labels=False,
        random_state=ours.seed,
    ).fit(features)
    joblib.dump(model, root / STOCK / "km.mdl")


def stock_assign(root: Path, options: Options) -> None:
    """Nearest centroids of the stored features."""
    centroids = joblib.load(root / STOCK / "km.mdl").cluster_centers_
    norms = np.square(centroids).sum(1)
    with open(root / STOCK / "text.km", "w", encoding="utf-8") as file:
        for utt, matrix in _stored(root):
            units = (norms - 2 * matrix @ centroids.T).argmin(1)
            file.write(f"{utt} {' '.join(map(str, units))}\n")


def our_dump(root: Path, options: Options) -> None:
    """Features of a sample."""
    teacher = load_teacher(str(root / "teacher"), options.layer)
    scp = root / "wav.scp"
    speech = sum(len(read_speech(*row)) for row in read_wav_scp(scp).items()) / RATE
    hours = options.share * speech / 3600
    dump_features(teacher, scp, root / OURS / "features", hours_per_lang=hours)


def our_fit(root: Path, options: Options) -> None:
    """K-means from disk."""
    folder = root / OURS
    learn_kmeans(
        folder / "features", folder / "codebook.npz", KmeansConfig(options.units)
    )


def our_assign(root: Path, options: Options) -> None:
    """Teacher's forward and nearest centroids in one pass."""
    teacher = load_teacher(str(root / "teacher"), options.layer)
    folder = root / OURS
    files = folder / "codebook.npz", root / "wav.scp", folder / "text.km"
    assign_units(teacher, *files, features=folder / "features")


PATHS: dict[str, dict[str, Callable[[Path, Options], None]]] = {
    STOCK: {
        "dump all features": stock_dump,
        "concatenate in RAM and fit": stock_fit,
        "assign": stock_assign,
    },
    OURS: {
        "dump features of a sample": our_dump,
        "k-means from disk": our_fit,
        "teacher and assign in one pass": our_assign,
    },
}


def measure(
    step: Callable[[Path, Options], None], root: Path, options: Options
) -> dict[str, Any]:
    """Run one step; returns its seconds and the peak of its anonymous memory."""
    with memory.AnonymousPeak() as peak:
        started = time.perf_counter()
        step(root, options)
        return {"seconds": time.perf_counter() - started, "bytes": peak.bytes}


def _disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _inertia(root: Path, centroids: np.ndarray) -> float:
    """Mean squared distance of all frames to their centroids."""
    sums = [(mean_inertia(x, centroids) * len(x), len(x)) for _, x in _stored(root)]
    total, frames = np.sum(sums, axis=0)
    return total / frames


def run(options: Options, device: str) -> list[str | Table]:
    """Measure both paths, one step after another; returns text and tables."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_teacher(root, options.size)
        _, samples = write_speech(
            root, options.utterances, options.shortest, options.longest
        )
        steps = Table(
            "Steps",
            ["path", "step", "seconds", "peak RssAnon MB", "on disk after it MB"],
        )
        totals = {}
        with tqdm(total=6, desc="units", leave=False, disable=None) as bar:
            for path, functions in PATHS.items():
                rows = []
                for step, function in functions.items():
                    found = memory.call(
                        *(measure, function, root, options), fresh=bool(options.fresh)
                    )
                    rows.append((found["seconds"], found["bytes"], _disk(root / path)))
                    cells = f"{rows[-1][0]:.1f}", *map(megabytes, rows[-1][1:])
                    steps.rows.append([path, step, *cells])
                    bar.update()
                seconds, anonymous, disk = zip(*rows, strict=True)
                totals[path] = sum(seconds), max(anonymous), max(disk)
        inertia = {
            STOCK: _inertia(
                root, joblib.load(root / STOCK / "km.mdl").cluster_centers_
            ),
            OURS: _inertia(root, load_codebook(root / OURS / "codebook.npz").centroids),
        }
    whole = Table(
        "Whole paths",
        [
            "path",
            "seconds",
            "peak RssAnon MB",
            "most on disk MB",
            "inertia, all frames",
        ],
    )
    for path, (seconds, *sizes) in totals.items():
        cells = [f"{seconds:.1f}", *map(megabytes, sizes), f"{inertia[path]:.5g}"]
        whole.rows.append([path, *cells])
    ratios = np.array(totals[OURS]) / np.array(totals[STOCK])
    change = inertia[OURS] / inertia[STOCK]
    whole.rows.append(
        ["ours / stock", *(f"{ratio:.2f}" for ratio in ratios), f"{change:.4f}"]
    )
    speech = sum(map(len, samples)) / RATE
    dim = SIZES[options.size]["encoder_embed_dim"]
    explanation = (
        f"{options.utterances} utterances of noise, {speech:.0f} s; HuBERT "
        f"`{options.size}`, layer {options.layer}, K = {options.units}; the same "
        "truncated forward, batches and single process in both, each step in a process "
        "of its own. The stock path is ESPnet's and fairseq's: features of "
        "all speech to disk, all of them concatenated in memory, scikit-learn's `fit`, "
        f"labels from the stored features. Ours clusters a sample ({options.share:.0%} "
        "of the speech, whose features label it, too) and stores no other "
        f"features. An hour of speech is {50 * 3600 * dim * 4 / 1e6:.0f} MB of "
        "features: stock's disk and memory grow by that, in memory twice while it "
        "concatenates; ours by the sample's on disk, in memory not at all."
    )
    return [explanation, steps, whole]
