"""K-means: quality against scikit-learn, resuming, what is written."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.cluster import MiniBatchKMeans

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.units import kmeans as kmeans_module
from espnet2_lamer.units.kmeans import KmeansConfig, learn_kmeans
from espnet2_lamer.units.steps import Steps


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


def moving(frames=30000, dim=12, seed=0):
    """Frames that move from target to target, as a teacher's do: no clear clusters."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((dim, dim)) * np.geomspace(1, 0.1, dim)
    target, x, rows = np.zeros(dim), np.zeros(dim), []
    for noise in rng.standard_normal((frames, dim)):
        if rng.random() < 0.1:
            target = 2 * rng.standard_normal(dim)
        x = 0.7 * x + 0.3 * target + 0.2 * noise
        rows.append(x)
    return (np.array(rows) @ mix.T).astype(np.float32)


def compare_with_fit(store, frames, output, config):
    """Inertia of ours and of scikit-learn's ``fit`` of 20 starts, on all frames."""
    book = learn_kmeans(store, output, config)
    model = MiniBatchKMeans(
        config.n_clusters,
        n_init=20,
        batch_size=config.batch_size,
        max_iter=config.max_passes,
        reassignment_ratio=0.0,
        max_no_improvement=100,
        tol=0.0,
        random_state=config.seed,
    ).fit(frames)
    return (
        mean_inertia(frames, book.centroids),
        mean_inertia(frames, model.cluster_centers_),
    )


@pytest.mark.parametrize("data", [pytest.param(moving, marks=pytest.mark.slow), blobs])
def test_inertia_is_at_most_half_a_per_cent_above_scikit_learns_fit(tmp_path, data):
    """On the mean of some runs: one differs from another by half a per cent."""
    frames = data(frames=6000)
    store = write_store(tmp_path / "features", frames)
    ours, reference = np.mean(
        [
            compare_with_fit(
                store,
                frames,
                tmp_path / "codebook.npz",
                KmeansConfig(20, seed, batch_size=1000),
            )
            for seed in range(4)
        ],
        axis=0,
    )
    assert ours < 1.005 * reference


@pytest.mark.slow
@pytest.mark.parametrize("data", [moving, blobs])
def test_inertia_is_no_worse_than_scikit_learns_in_the_papers_settings(tmp_path, data):
    frames = data(frames=30000)
    store = write_store(tmp_path / "features", frames)
    ours, reference = np.mean(
        [
            compare_with_fit(
                store, frames, tmp_path / "codebook.npz", KmeansConfig(50, seed)
            )
            for seed in range(5)
        ],
        axis=0,
    )
    assert ours < 1.005 * reference


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


def test_the_result_does_not_depend_on_the_number_of_processes(tmp_path):
    store = write_store(tmp_path / "features", blobs(1000))
    config = KmeansConfig(12, n_init=5, batch_size=300, max_passes=2)
    for nj in (1, 2):
        learn_kmeans(store, tmp_path / f"{nj}.npz", config, nj=nj)
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()


@pytest.mark.parametrize("starts", [1, 3])
def test_starts_that_are_done_are_not_done_again(tmp_path, monkeypatch, starts):
    store = write_store(tmp_path / "features", blobs(1000))
    config = KmeansConfig(12, n_init=4, batch_size=300, max_passes=2)
    learn_kmeans(store, tmp_path / "whole.npz", config)
    real, seeds = kmeans_module._start, []

    def dies(validation, start, n_clusters, seed, device):
        if len(seeds) == starts:
            raise KeyboardInterrupt
        seeds.append(seed)
        return real(validation, start, n_clusters, seed, device)

    monkeypatch.setattr(kmeans_module, "_start", dies)
    with pytest.raises(KeyboardInterrupt):
        learn_kmeans(store, tmp_path / "resumed.npz", config)
    starts = 99
    learn_kmeans(store, tmp_path / "resumed.npz", config)
    assert len(seeds) == len(set(seeds)) == 4
    expected = (tmp_path / "whole.npz").read_bytes()
    assert (tmp_path / "resumed.npz").read_bytes() == expected


@pytest.mark.parametrize("killed_after", [1, 4, 6, 11])
def test_a_resumed_run_ends_with_identical_bytes(tmp_path, monkeypatch, killed_after):
    monkeypatch.setattr(kmeans_module, "SAVE_EVERY", 3)
    # Rounds of four steps, passes of six.
    monkeypatch.setattr(kmeans_module, "ROUND_FRAMES", 160)
    store = write_store(tmp_path / "features", blobs(3000))
    config = KmeansConfig(12, batch_size=500, max_passes=3, min_gain=0.0)
    learn_kmeans(store, tmp_path / "whole.npz", config)

    real, steps = Steps.step, []

    def dies(self, block):
        steps.append(len(block))
        if len(steps) > killed_after:
            raise KeyboardInterrupt
        return real(self, block)

    monkeypatch.setattr(Steps, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        learn_kmeans(store, tmp_path / "resumed.npz", config)
    assert not (tmp_path / "resumed.npz").exists()
    done = 3 * (killed_after // 3)
    monkeypatch.setattr(Steps, "step", lambda *a: steps.append(0) or real(*a))
    steps.clear()
    learn_kmeans(store, tmp_path / "resumed.npz", config)
    quality = json.loads((tmp_path / "whole.quality.json").read_text())
    assert len(steps) == quality["steps"] - done
    for name in ("{}.npz", "{}.quality.json"):
        expected = (tmp_path / name.format("whole")).read_bytes()
        assert (tmp_path / name.format("resumed")).read_bytes() == expected
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


def test_no_processes_are_refused(tmp_path):
    store = write_store(tmp_path / "features", blobs(100))
    with pytest.raises(RecipeError, match="--nj 0: expected 1 or more"):
        learn_kmeans(store, tmp_path / "codebook.npz", KmeansConfig(5), nj=0)


def fake_steps(monkeypatch, inertias):
    """Steps whose inertia after each round is given; what was asked of them."""
    calls = []

    class FakeSteps:
        centroids = np.zeros((2, 6), np.float32)
        counts = np.zeros(2, np.float32)

        def __init__(self, *arguments):
            self._inertias = iter(inertias)

        def step(self, block):
            calls.append("step")

        def forget(self, share):
            calls.append(share)

        def inertia(self, frames):
            return next(self._inertias)

    monkeypatch.setattr(kmeans_module, "Steps", FakeSteps)
    return calls


def test_stops_when_a_round_gains_too_little_and_logs_each(
    tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO")
    store = write_store(tmp_path / "features", blobs(2000))
    calls = fake_steps(monkeypatch, [5.0, 4.0, 3.97, 3.95, 1.0])
    config = KmeansConfig(2, batch_size=1000, min_gain=0.007)
    learn_kmeans(store, tmp_path / "codebook.npz", config)
    keep = kmeans_module.KEEP
    assert calls == ["step", "step", keep] * 3 + ["step", "step"]
    assert "round 2, 4 steps: inertia 4, 20.00 % lower" in caplog.text
    assert "round 4, 8 steps: inertia 3.95, 0.50 % lower" in caplog.text
    quality = json.loads((tmp_path / "codebook.quality.json").read_text())
    found = [quality[key] for key in ("steps", "passes", "rounds")]
    assert found == [8, 4, 4]


@pytest.mark.parametrize(("round_frames", "length"), [(500, 1), (1500, 3), (9999, 4)])
def test_a_round_is_a_pass_or_so_many_frames_per_cluster(
    tmp_path, monkeypatch, round_frames, length
):
    store = write_store(tmp_path / "features", blobs(4000))
    monkeypatch.setattr(kmeans_module, "ROUND_FRAMES", round_frames)
    calls = fake_steps(monkeypatch, [5.0, 4.0, 4.0])
    learn_kmeans(store, tmp_path / "c.npz", KmeansConfig(2, batch_size=1000))
    first = ["step"] * length + [kmeans_module.KEEP]
    assert calls == first * 2 + ["step"] * length


def test_a_run_that_does_not_converge_says_so(tmp_path, monkeypatch, caplog):
    store = write_store(tmp_path / "features", blobs(2000))
    fake_steps(monkeypatch, [0.5**number for number in range(9)])
    config = KmeansConfig(2, batch_size=1000, max_passes=3)
    learn_kmeans(store, tmp_path / "codebook.npz", config)
    assert "stopped after 3 passes" in caplog.text


def test_one_start_and_forgetting_end_no_worse_than_twenty_that_never_forget(tmp_path):
    """The claim of the defaults, on the mean of three runs."""
    frames = moving(6000)
    store = write_store(tmp_path / "features", frames)

    def learn(config, keep):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kmeans_module, "KEEP", keep)
            return learn_kmeans(store, tmp_path / "c.npz", config).metadata["inertia"]

    seeds = range(3)
    few = [KmeansConfig(40, seed, batch_size=1000) for seed in seeds]
    many = [replace(c, n_init=20, max_passes=40, min_gain=-1) for c in few]
    ours = np.mean([learn(config, kmeans_module.KEEP) for config in few])
    assert ours < 1.005 * np.mean([learn(config, 1.0) for config in many])


def test_the_number_of_threads_changes_no_byte(tmp_path):
    store = write_store(tmp_path / "features", blobs(3000, dim=24))
    config = KmeansConfig(30, batch_size=1500, max_passes=2)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            learn_kmeans(store, tmp_path / f"{threads}.npz", config)
    finally:
        torch.set_num_threads(before)
    first, *others = ((tmp_path / f"{t}.npz").read_bytes() for t in (1, 2, 3))
    assert others == [first, first]


def test_quality_is_written_beside_the_codebook_and_logged(tmp_path, caplog):
    caplog.set_level("INFO")
    store = write_store(tmp_path / "features", blobs(1000))
    config = KmeansConfig(10, n_init=2, batch_size=300, max_passes=2)
    book = learn_kmeans(store, tmp_path / "codebook.npz", config)
    quality = json.loads((tmp_path / "codebook.quality.json").read_text())
    assert quality["inertia"] == book.metadata["inertia"]
    assert quality["dead"] == 0
    assert quality["passes"] == 2
    assert -1 <= quality["silhouette"] <= 1
    assert "| silhouette |" in (tmp_path / "codebook.quality.md").read_text()
    assert "silhouette" in caplog.text and "dead 0" in caplog.text
