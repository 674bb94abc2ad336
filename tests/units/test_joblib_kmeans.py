"""Import of a joblib k-means: what is kept, what is asked for, what is refused."""

import joblib
import numpy as np
import pytest
from sklearn.cluster import KMeans, MiniBatchKMeans

from espnet2_lamer.bin import import_kmeans as import_kmeans_bin
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.units.codebook import import_kmeans, load_codebook


def frames(dim=39):
    return np.random.default_rng(0).standard_normal((200, dim)).astype(np.float32)


@pytest.mark.parametrize("kind", [KMeans, MiniBatchKMeans])
def test_units_are_the_models_own_predictions(mfcc, tmp_path, kind):
    model = kind(7, n_init=1, random_state=3).fit(frames())
    joblib.dump(model, tmp_path / "km.bin")
    book = import_kmeans(tmp_path / "km.bin", mfcc, tmp_path / "c.npz", True)
    np.testing.assert_array_equal(book.assign(frames()), model.predict(frames()))
    metadata = load_codebook(tmp_path / "c.npz").metadata
    assert (metadata["K"], metadata["seed"], metadata["frames"]) == (7, 3, None)
    assert metadata["imported_sha256"] == sha256_file(tmp_path / "km.bin")
    book.check_teacher(mfcc.identity, mfcc.dim, "c.npz")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_without_trust_nothing_is_unpickled_and_the_reason_is_given(mfcc, tmp_path):
    joblib.dump(Trap(tmp_path / "trace"), tmp_path / "km.bin")
    with pytest.raises(RecipeError, match="unpickles it.*--trust_pickle"):
        import_kmeans(tmp_path / "km.bin", mfcc, tmp_path / "c.npz")
    assert not (tmp_path / "trace").exists()
    assert not (tmp_path / "c.npz").exists()


def unfitted():
    return KMeans(3)


def of_another_dimension():
    return KMeans(3, n_init=1).fit(frames(13))


def not_finite():
    model = KMeans(3, n_init=1).fit(frames())
    model.cluster_centers_[0, 0] = np.nan
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (unfitted, "found a KMeans, expected a fitted"),
        (dict, "found a dict"),
        (of_another_dimension, "dimension 13, but teacher mfcc layer 0 gives 39"),
        (not_finite, "not finite"),
    ],
)
def test_what_is_no_k_means_of_this_teacher_is_refused(mfcc, tmp_path, make, reason):
    joblib.dump(make(), tmp_path / "km.bin")
    with pytest.raises(RecipeError, match=reason):
        import_kmeans(tmp_path / "km.bin", mfcc, tmp_path / "c.npz", True)
    assert not (tmp_path / "c.npz").exists()


def test_a_file_that_is_no_pickle_is_refused(mfcc, tmp_path):
    (tmp_path / "km.bin").write_bytes(b"hello")
    with pytest.raises(RecipeError, match="cannot be unpickled"):
        import_kmeans(tmp_path / "km.bin", mfcc, tmp_path / "c.npz", True)
    with pytest.raises(RecipeError, match="not found"):
        import_kmeans(tmp_path / "none.bin", mfcc, tmp_path / "c.npz", True)


def test_command_line_imports_and_labels_with_the_result(mfcc, tmp_path):
    model = KMeans(4, n_init=1).fit(frames())
    joblib.dump(model, tmp_path / "km.bin")
    command = ["--joblib", str(tmp_path / "km.bin"), "--teacher", "mfcc"]
    command += ["--layer", "0", "--output", str(tmp_path / "c.npz")]
    with pytest.raises(RecipeError, match="--trust_pickle"):
        import_kmeans_bin.main(command)
    import_kmeans_bin.main([*command, "--trust_pickle"])
    centroids = load_codebook(tmp_path / "c.npz").centroids
    np.testing.assert_array_equal(centroids, model.cluster_centers_)
