"""K-means: quality against scikit-learn, resuming, the codebook file."""

import json

import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.units import kmeans as kmeans_module
from espnet2_lamer.units.codebook import Codebook, load_codebook, save_codebook
from espnet2_lamer.units.kmeans import KmeansConfig, learn_kmeans

METADATA = {
    "teacher": "mfcc",
    "teacher_sha256": "0" * 64,
    "layer": 0,
    "normalisation": "none",
    "K": 4,
    "seed": 0,
    "frames": 10,
    "inertia": 1.0,
}


def write_store(directory, frames, shards=3):
    """A feature directory with the given frames ``[n, D]``."""
    directory.mkdir()
    entries = []
    for number, part in enumerate(np.array_split(frames.astype("<f4"), shards)):
        path = directory / f"{number:05d}.bin"
        part.tofile(path)
        utts = [[f"utt{number}", "eng", 0, len(part)]]
        entries.append(
            {
                "file": path.name,
                "frames": len(part),
                "sha256": sha256_file(path),
                "utts": utts,
            }
        )
    teacher = {"source": "t", "sha256": "1", "layer": 9, "normalisation": "none"}
    index = {
        "dim": frames.shape[1],
        "dtype": "float32",
        "teacher": teacher,
        "shards": entries,
    }
    (directory / "index.json").write_text(json.dumps(index))
    return directory


def blobs(frames=20000, clusters=25, dim=6, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, dim)) * 3
    labels = rng.integers(clusters, size=frames)
    return (centres[labels] + rng.standard_normal((frames, dim))).astype(np.float32)


def mean_inertia(frames, centroids):
    distances = ((frames[:, None] - centroids[None]) ** 2).sum(-1)
    return distances.min(1).mean()


def test_inertia_is_within_one_per_cent_of_scikit_learns_fit(tmp_path):
    frames = blobs()
    store = write_store(tmp_path / "features", frames)
    config = KmeansConfig(25, n_init=5, batch_size=1000, max_no_improvement=100)
    ours = learn_kmeans(store, tmp_path / "codebook.npz", config)
    reference = MiniBatchKMeans(
        25,
        n_init=5,
        batch_size=1000,
        reassignment_ratio=0.0,
        max_no_improvement=100,
        tol=0.0,
        random_state=0,
    ).fit(frames)
    expected = mean_inertia(frames, reference.cluster_centers_)
    assert mean_inertia(frames, ours.centroids) <= 1.01 * expected


def test_codebook_records_where_it_comes_from(tmp_path):
    frames = blobs(1000)
    store = write_store(tmp_path / "features", frames)
    config = KmeansConfig(10, seed=3, n_init=2, batch_size=300)
    book = learn_kmeans(store, tmp_path / "codebook.npz", config)
    inertia = book.metadata.pop("inertia")
    # All frames are the validation block when there are so few.
    assert inertia == pytest.approx(mean_inertia(frames, book.centroids), rel=1e-5)
    assert book.metadata == {
        "teacher": "t",
        "teacher_sha256": "1",
        "layer": 9,
        "normalisation": "none",
        "K": 10,
        "seed": 3,
        "frames": 1000,
    }
    assert book.sha256 == sha256_file(tmp_path / "codebook.npz")


@pytest.mark.parametrize("killed_after", [1, 4, 11])
def test_a_resumed_run_ends_with_identical_bytes(tmp_path, monkeypatch, killed_after):
    monkeypatch.setattr(kmeans_module, "SAVE_EVERY", 3)
    store = write_store(tmp_path / "features", blobs(3000))
    config = KmeansConfig(12, n_init=3, batch_size=500, max_passes=3)
    learn_kmeans(store, tmp_path / "whole.npz", config)

    real, steps = MiniBatchKMeans.partial_fit, []

    def dies(self, frames, *args, **kwargs):
        steps.append(len(frames))
        if len(steps) > killed_after + 1:  # the first call prepares the model
            raise KeyboardInterrupt
        return real(self, frames, *args, **kwargs)

    monkeypatch.setattr(MiniBatchKMeans, "partial_fit", dies)
    with pytest.raises(KeyboardInterrupt):
        learn_kmeans(store, tmp_path / "resumed.npz", config)
    assert not (tmp_path / "resumed.npz").exists()
    monkeypatch.setattr(MiniBatchKMeans, "partial_fit", real)
    learn_kmeans(store, tmp_path / "resumed.npz", config)
    expected = (tmp_path / "whole.npz").read_bytes()
    assert (tmp_path / "resumed.npz").read_bytes() == expected
    assert not (tmp_path / "resumed.npz.state.npz").exists()


def test_a_state_of_other_settings_is_not_used(tmp_path, monkeypatch):
    store = write_store(tmp_path / "features", blobs(2000))
    config = KmeansConfig(7, n_init=2, batch_size=500, max_passes=2)
    learn_kmeans(store, tmp_path / "clean.npz", config)
    with monkeypatch.context() as patch:
        patch.setattr(
            kmeans_module, "_converged", lambda *args: (_ for _ in ()).throw(OSError)
        )
        with pytest.raises(OSError):
            learn_kmeans(
                store, tmp_path / "used.npz", KmeansConfig(7, seed=9, n_init=2)
            )
    assert (tmp_path / "used.npz.state.npz").exists()
    learn_kmeans(store, tmp_path / "used.npz", config)
    clean = (tmp_path / "clean.npz").read_bytes()
    assert (tmp_path / "used.npz").read_bytes() == clean


def test_fewer_frames_than_clusters_is_refused(tmp_path):
    store = write_store(tmp_path / "features", blobs(10))
    with pytest.raises(RecipeError, match="10 frames for 11 clusters"):
        learn_kmeans(store, tmp_path / "codebook.npz", KmeansConfig(11))
    assert not (tmp_path / "codebook.npz").exists()


def test_stops_when_the_smoothed_inertia_no_longer_improves(tmp_path, monkeypatch):
    store = write_store(tmp_path / "features", blobs(2000))
    values = iter([5.0, 4.0, 3.0] + [3.5] * 1000)
    steps = []

    class FakeModel:
        cluster_centers_ = np.zeros((2, 6), np.float32)
        _counts = np.zeros(2, np.float32)

        def partial_fit(self, block):
            steps.append(block)
            self.inertia_ = next(values) * len(block)

    monkeypatch.setattr(kmeans_module, "_resume_model", lambda *args: FakeModel())
    config = KmeansConfig(2, n_init=1, batch_size=2000, max_no_improvement=5)
    learn_kmeans(store, tmp_path / "codebook.npz", config)
    # Smoothing of a batch as large as the store is (almost) none: best at step 3.
    assert len(steps) == 3 + 5


def test_assign_is_brute_force_nearest_centroid():
    rng = np.random.default_rng(0)
    centroids = rng.standard_normal((40, 12)).astype(np.float32)
    frames = rng.standard_normal((9000, 12)).astype(np.float32)
    distances = ((frames[:, None].astype(float) - centroids[None]) ** 2).sum(-1)
    units = Codebook(centroids, METADATA, "").assign(frames)
    assert units.dtype == np.int64
    np.testing.assert_array_equal(units, distances.argmin(1))


def test_saving_twice_gives_equal_bytes_and_loading_equal_values(tmp_path):
    centroids = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    for name in "ab":
        save_codebook(tmp_path / name, centroids, METADATA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    book = load_codebook(tmp_path / "a")
    np.testing.assert_array_equal(book.centroids, centroids)
    assert book.metadata == METADATA


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_codebook_with_a_pickled_object_is_refused_and_not_run(tmp_path):
    path = tmp_path / "codebook.npz"
    trap = np.array([Trap(tmp_path / "trace")], dtype=object)
    np.savez(path, centroids=trap, metadata=np.array(json.dumps(METADATA)))
    with pytest.raises(RecipeError, match="pickled"):
        load_codebook(path)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("centroids", "metadata", "reason"),
    [
        (np.zeros((5, 3), np.float32), METADATA, r"\(5, 3\)"),
        (np.zeros((4, 3), np.float64), METADATA, "float64"),
        (np.zeros(4, np.float32), METADATA, r"\(4,\)"),
        (np.full((4, 3), np.nan, np.float32), METADATA, "finite"),
        (np.zeros((4, 3), np.float32), {"K": 4}, "expected the keys"),
    ],
)
def test_a_wrong_codebook_is_refused(tmp_path, centroids, metadata, reason):
    path = tmp_path / "codebook.npz"
    np.savez(path, centroids=centroids, metadata=np.array(json.dumps(metadata)))
    with pytest.raises(RecipeError, match=reason):
        load_codebook(path)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "missing"])
def test_a_damaged_codebook_file_is_refused(tmp_path, damage):
    path = tmp_path / "codebook.npz"
    save_codebook(path, np.zeros((4, 3)), METADATA)
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"truncated": data[: len(data) // 2], "text": b"hello", "empty": b""}[
                damage
            ]
        )
    with pytest.raises(RecipeError, match="codebook.npz"):
        load_codebook(path)
