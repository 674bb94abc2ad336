"""The averaged model: the mean of the best epochs, counters of the best one."""

import os

import pytest
import torch
from espnet2.train.reporter import Reporter

from espnet2_lamer.fileio.atomic import link
from espnet2_lamer.train.checkpoint import average_best_models

LOSSES = {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0}
BEST = [2, 3, 1, 4]
CRITERION = ("valid", "loss_m", "min")


@pytest.fixture
def trained(tmp_path):
    """A reporter and epoch files of four epochs."""
    reporter = Reporter()
    generator = torch.Generator().manual_seed(0)
    for epoch, loss in LOSSES.items():
        with reporter.observe("valid", epoch) as sub:
            sub.register({"loss_m": loss})
            sub.next()
        state = {
            "weight": torch.randn(3, 4, generator=generator),
            "half": torch.randn(5, generator=generator).bfloat16(),
            "counter": torch.tensor(epoch),
            "hash": torch.tensor([epoch] * 32, dtype=torch.uint8),
        }
        torch.save(state, tmp_path / f"{epoch}epoch.pth")
    return reporter, tmp_path


def read(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("number", [2, 3, 4, 9])
def test_weights_are_the_mean_of_the_best_and_counters_the_bests(trained, number):
    reporter, directory = trained
    average_best_models(reporter, directory, [CRITERION], [number])
    number = min(number, len(LOSSES))
    found = read(directory / f"valid.loss_m.ave_{number}best.pth")
    epochs = [read(directory / f"{epoch}epoch.pth") for epoch in BEST[:number]]
    mean = torch.stack([state["weight"].double() for state in epochs]).mean(0)
    torch.testing.assert_close(found["weight"], mean.float(), rtol=0, atol=1e-7)
    assert found["weight"].dtype == torch.float32
    # Summed in double: bfloat16 would lose the small differences between epochs.
    mean = torch.stack([state["half"].double() for state in epochs]).mean(0)
    assert torch.equal(found["half"], mean.bfloat16())
    assert found["counter"] == 2 and (found["hash"] == 2).all()
    alias = directory / "valid.loss_m.ave.pth"
    assert os.readlink(alias) == f"valid.loss_m.ave_{number}best.pth"


def test_a_mean_of_one_is_a_link_to_the_best_epoch(trained):
    reporter, directory = trained
    average_best_models(reporter, directory, [CRITERION], [1])
    assert os.readlink(directory / "valid.loss_m.ave_1best.pth") == "2epoch.pth"
    assert read(directory / "valid.loss_m.ave.pth")["counter"] == 2


def test_of_several_numbers_the_largest_gets_the_short_name(trained):
    reporter, directory = trained
    criteria = [CRITERION, ("valid", "never_measured", "max")]
    average_best_models(reporter, directory, criteria, [3, 2])
    names = {path.name for path in directory.glob("*ave*.pth")}
    assert names == {
        "valid.loss_m.ave_2best.pth",
        "valid.loss_m.ave_3best.pth",
        "valid.loss_m.ave.pth",
    }
    alias = directory / "valid.loss_m.ave.pth"
    assert os.readlink(alias) == "valid.loss_m.ave_3best.pth"


def test_a_link_is_replaced_at_once(tmp_path):
    for target in ("1epoch.pth", "2epoch.pth"):
        link(tmp_path / "latest.pth", target)
        assert os.readlink(tmp_path / "latest.pth") == target
    assert os.listdir(tmp_path) == ["latest.pth"]
