"""The codebook file and nearest-centroid assignment."""

import json
import pickle

import numpy as np
import pytest
import torch

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.units.codebook import Codebook, load_codebook, save_codebook

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


def test_a_codebook_of_a_file_is_pickled_by_name(codebook, tmp_path, monkeypatch):
    monkeypatch.chdir(codebook.parent)
    data = pickle.dumps(load_codebook(codebook.name))
    assert len(data) < 1000
    monkeypatch.chdir(tmp_path)
    book = pickle.loads(data)
    np.testing.assert_array_equal(book.centroids, load_codebook(codebook).centroids)
    assert pickle.loads(data) is book  # read once


def test_a_codebook_that_changed_meanwhile_is_refused(tmp_path):
    path = tmp_path / "codebook.npz"
    save_codebook(path, np.zeros((4, 3)), METADATA)
    data = pickle.dumps(load_codebook(path))
    save_codebook(path, np.ones((4, 3)), METADATA)
    with pytest.raises(RecipeError, match="changed meanwhile"):
        pickle.loads(data)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_units_of_a_tensor_are_those_of_the_array(device):
    rng = np.random.default_rng(0)
    frames = rng.standard_normal((50, 3)).astype(np.float32)
    book = Codebook(rng.standard_normal((4, 3)).astype(np.float32), METADATA, "")
    expected = book.assign(frames)
    found = book.assign(torch.tensor(frames, device=device))
    np.testing.assert_array_equal(found, expected)
