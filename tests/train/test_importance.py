"""Scores of a trained experiment: its own batches, no trace, the same again."""

import copy

import pytest
import torch
from espnet2.torch_utils.device_funcs import to_device

from espnet2_lamer.layers.importance import ComponentImportance, experts_by_layer
from espnet2_lamer.tasks.hubert import LamerHubertTask
from espnet2_lamer.train.importance import score_experts
from tests.train.small_training import CONFIG, command


@pytest.fixture
def experiment(corpus, tmp_path):
    """One epoch of a training with three experts of rank 2 a layer."""
    conf = copy.deepcopy(CONFIG["encoder_conf"])
    conf["lamer"] = {"allocation": 3, "rank": 2}
    conf |= {"encoder_dropout": 0.0, "encoder_ff_interm_dropout": 0.0}
    output = tmp_path / "exp"
    changes = {"encoder_conf": conf, "max_epoch": 1, "monitor_utts": 0}
    LamerHubertTask.main(cmd=command(corpus, output, **changes))
    return output


def test_scores_are_those_of_batches_of_the_second_epoch(experiment, make_parts):
    before = {path: path.stat().st_mtime_ns for path in experiment.rglob("*")}
    found = score_experts(LamerHubertTask, experiment, batches=2)
    assert {path: path.stat().st_mtime_ns for path in experiment.rglob("*")} == before
    assert found == score_experts(LamerHubertTask, experiment, batches=2)

    conf = copy.deepcopy(CONFIG["encoder_conf"])
    conf["lamer"] = {"allocation": 3, "rank": 2}
    conf |= {"encoder_dropout": 0.0, "encoder_ff_interm_dropout": 0.0}
    parts = make_parts(encoder_conf=conf)
    path = experiment / "valid.loss_m.best.pth"
    parts.model.load_state_dict(torch.load(path, weights_only=True))
    model = parts.model.train()
    expected = [
        {name: ComponentImportance(one) for name, one in targets.items()}
        for _, targets in experts_by_layer(model)
    ]
    batches = parts.train.build_iter(2)
    for _ in range(2):
        model.zero_grad()
        _, batch = next(batches)
        model(**to_device(batch, "cpu"))[0].backward()
        for targets in expected:
            for one in targets.values():
                one.add()
    assert len(found) == len(expected) == 2
    for ours, theirs in zip(found, expected, strict=True):
        assert set(ours) == {"intermediate_dense", "output_dense"}
        for name, rows in ours.items():
            values = theirs[name].values
            assert values.shape == (3, 2) and values.sum() > 0
            torch.testing.assert_close(torch.tensor(rows), values)
