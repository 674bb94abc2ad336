"""With update_bins, 2 and 4 processes (gloo) train as one does, to rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("rank_worker.py")
KILLED = -9


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """All trainings, in one set of processes."""
    done = subprocess.run(
        [sys.executable, WORKER, tmp_path_factory.mktemp("ranks")],
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    killed = found["codes"].pop("killed")
    assert killed == [KILLED, KILLED]
    assert {code for codes in found["codes"].values() for code in codes} == {0}, found[
        "tail"
    ]
    return found


def losses(figures):
    return {
        name: value
        for name, value in figures.items()
        if "loss" in name or "acc_m" in name or "grad_norm" in name or "lr" in name
    }


@pytest.mark.parametrize("ranks", ["two", "four"])
def test_ranks_train_as_one_process(report, ranks):
    one, found = (losses(report["figures"][name]) for name in ("one", ranks))
    assert "2.train.loss_m" in one and "2.valid.acc_m_cmn" in one
    # Two epochs, each with other crops and masks.
    assert one["1.train.loss"] != one["2.train.loss"]
    assert found == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_ranks_share_a_feature_cache_and_train_as_without(report):
    without, found = (losses(report["figures"][name]) for name in ("two", "two_c"))
    assert found == without
    assert "% from the feature cache" in report["cached"]


def test_micro_batches_of_ranks_train_as_one_batch(report):
    """Without the balance term, which is one of each micro-batch."""
    one, found = (losses(report["figures"][name]) for name in ("one_u", "two_p"))
    assert found == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_ranks_send_one_message_per_update_beside_the_models(report):
    """That of the model (balance and weights) is one per micro-batch."""
    assert max(batches for batches, _ in report["messages"]) > 1
    for batches, messages in report["messages"]:
        assert messages == batches + 1


def test_a_training_of_two_goes_on_alone_with_the_same_updates(report):
    one, found = (losses(report["figures"][name]) for name in ("one", "killed"))
    assert found == pytest.approx(one, rel=1e-4, abs=1e-6)
    assert "resumed under another condition: world_size: 2 -> 1" in report["log"]
    assert "resumed after update 1, epoch 1, batch 1" in report["log"]
