"""The control's figures of an epoch stand right behind the training's own."""

import pytest
import torch

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.train.labels import beside
from espnet2_lamer.train.monitor import read_control


def write_control(directory, epochs=2):
    """What is read of a control's checkpoint."""
    stats = {
        epoch: {
            "train": {"acc_m": 0.9, "acc_m_eng": 0.9},
            "valid": {
                "loss_m": 4.0,
                "loss_m_bits": 5.5 - epoch,
                "acc_m": epoch / 10,
                "majority_acc": 0.05,
                "acc_m_eng": epoch / 20,
                "bits_m_eng": 6.0,
                "majority_acc_eng": 0.04,
            },
        }
        for epoch in range(1, epochs + 1)
    }
    directory.mkdir(parents=True, exist_ok=True)
    state = {"reporter": {"epoch": epochs, "stats": stats}}
    torch.save(state, directory / "checkpoint.pth")
    return directory


def test_masked_figures_of_each_validation_are_read_without_baselines(tmp_path):
    found = read_control(write_control(tmp_path / "control"))
    assert found == {
        epoch: {
            "loss_m_bits": {"control_loss_m_bits": 5.5 - epoch},
            "acc_m": {"control_acc_m": epoch / 10},
            "acc_m_eng": {"control_acc_m_eng": epoch / 20},
            "bits_m_eng": {"control_bits_m_eng": 6.0},
        }
        for epoch in (1, 2)
    }


def test_they_stand_behind_the_figures_that_the_training_has(tmp_path):
    control = read_control(write_control(tmp_path / "control"))
    figures = {"acc_m": 0.3, "loss": 1.0, "acc_m_eng": 0.2, "acc_m_cmn": 0.4}
    assert list(beside(figures, control[2]).items()) == [
        ("acc_m", 0.3),
        ("control_acc_m", 0.2),
        ("loss", 1.0),
        ("acc_m_eng", 0.2),
        ("control_acc_m_eng", 0.1),
        ("acc_m_cmn", 0.4),
    ]
    assert beside(figures, {}) == figures


def test_a_control_that_was_not_trained_is_refused_by_its_path(tmp_path):
    with pytest.raises(RecipeError, match=f"monitor_control: found no {tmp_path}/gone"):
        read_control(tmp_path / "gone")
