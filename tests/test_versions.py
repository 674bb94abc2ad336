"""What other versions wrote loads and says the same; files in fixtures/.

version_0_1_0 is of that version, with ESPnet 202511, torch 2.11 and Python 3.11;
espnet_202611 was packed of its experiment with ESPnet 202611, torch 2.14, Python 3.12.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from espnet2_lamer import load_model
from tests.export.tiny import same, states_of

FIXTURES = Path(__file__).parent / "fixtures"
FILES = FIXTURES / "version_0_1_0"
SIDES = ["version_0_1_0", "espnet_202611"]


@pytest.fixture
def experiment():
    return load_model(FILES / "experiment", base=FILES / "base")


def test_an_experiment_gives_the_states_that_it_gave(experiment):
    found = states_of(experiment)
    expected = torch.load(FILES / "states.pt", weights_only=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Another CPU rounds differently: 2 layers of states around 1.
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", SIDES)
def test_a_packed_model_is_the_experiment(side, experiment):
    found = load_model(FIXTURES / side / "packed.zip")
    assert same(states_of(found), states_of(experiment))


@pytest.mark.parametrize("side", SIDES)
def test_an_adapter_file_is_the_experiment(side, experiment):
    found = load_model(FIXTURES / side / "adapter.safetensors", base=FILES / "base")
    assert same(states_of(found), states_of(experiment))


def test_a_codebook_has_its_centroids_and_their_origin():
    from espnet2_lamer.units.codebook import load_codebook

    codebook = load_codebook(FILES / "codebook.npz")
    expected = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    np.testing.assert_array_equal(codebook.centroids, expected)
    assert codebook.metadata["layer"] == 1 and codebook.metadata["K"] == 5


def test_a_pretraining_is_packed_with_its_base_in_another_place(experiment, tmp_path):
    from espnet2_lamer.bin import export

    words = [
        "--kind",
        "zoo",
        "--task",
        "ssl",
        "--experiment",
        str(FILES / "experiment"),
    ]
    output = tmp_path / "packed.zip"
    export.main([*words, "--base", str(FILES / "base"), "--output", str(output)])
    assert same(states_of(load_model(output)), states_of(experiment))
