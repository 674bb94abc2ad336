"""Stages 3 to 5 as functions of the options."""

from types import SimpleNamespace

import numpy as np
import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe import units
from espnet2_lamer.units.codebook import METADATA_KEYS, save_codebook


def test_an_imported_codebook_of_other_size_is_refused_before_labelling(tmp_path):
    path = tmp_path / "codebook.npz"
    metadata = dict.fromkeys(METADATA_KEYS) | {"K": 7}
    save_codebook(path, np.zeros((7, 3), np.float32), metadata)
    options = SimpleNamespace(codebook=path, n_clusters=8)
    with pytest.raises(RecipeError, match="7 units, --n_clusters is 8.*n_clusters 7"):
        units.label(options)


@pytest.mark.parametrize(
    ("ngpu", "nj", "device", "processes"),
    [(0, 8, "cpu", 8), (0, 1, "cpu", 1), (1, 8, "cuda", 2), (2, 1, "cuda", 1)],
)
def test_few_processes_share_a_gpu(ngpu, nj, device, processes):
    options = SimpleNamespace(ngpu=ngpu, nj=nj)
    assert units._device(options) == device
    assert units._processes(options) == processes
