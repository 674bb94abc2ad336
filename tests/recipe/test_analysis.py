"""Stage 8 draws what the trainings logged at each validation."""

import csv
import json
from types import SimpleNamespace

import pytest
import torch

from espnet2_lamer.recipe.analysis import _curves


def write_training(directory, accuracy, langs=("eng", "cmn")):
    stats = {
        epoch: {
            part: {"loss_m": 4.0} | {f"acc_m_{x}": accuracy * epoch for x in langs}
            for part in ("train", "valid")
        }
        for epoch in (1, 2)
    }
    directory.mkdir(parents=True)
    state = {"reporter": {"epoch": 2, "stats": stats}}
    torch.save(state, directory / "checkpoint.pth")


@pytest.fixture
def options(tmp_path):
    """What is used of the recipe's options."""
    return SimpleNamespace(
        ssl_experiment=tmp_path / "ssl_lamer",
        control_experiment=tmp_path / "ssl_head_only",
        trainings=[tmp_path / "ssl_lamer", tmp_path / "ssl_head_only"],
        analysis=tmp_path / "analysis",
        langs=["eng", "cmn", "yue"],
    )


def test_masked_accuracy_is_drawn_beside_the_control(options):
    write_training(options.ssl_experiment, 0.25)
    write_training(options.control_experiment, 0.125)
    _curves(options)
    path = options.analysis / "masked_accuracy_curves.csv"
    rows = [row for row in csv.DictReader(path.open()) if row["phase"] == "valid"]
    found = {(r["experiment"], r["epoch"]): r["acc_m_cmn"] for r in rows}
    assert found == {
        ("ssl_lamer", "1"): "0.25",
        ("ssl_lamer", "2"): "0.5",
        ("ssl_head_only", "1"): "0.125",
        ("ssl_head_only", "2"): "0.25",
    }
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert not (options.analysis / "forgetting_curves.csv").exists()


def test_forgetting_is_drawn_where_it_was_measured(options):
    write_training(options.ssl_experiment, 0.25, langs=())
    line = {"epoch": 1, "updates": 10, "layers": [2, 3], "cka": {"eng": [1.0, 0.5]}}
    line |= {"probe": {}, "probe_of_base": {}}
    path = options.ssl_experiment / "forgetting.jsonl"
    path.write_text(json.dumps(line) + "\n")
    _curves(options)
    rows = list(csv.DictReader((options.analysis / "forgetting_curves.csv").open()))
    assert [(r["layer"], r["cka"]) for r in rows] == [("2", "1"), ("3", "0.5")]
    assert (options.analysis / "forgetting_curves.png").stat().st_size > 1000
    assert not (options.analysis / "masked_accuracy_curves.csv").exists()


def test_norms_are_drawn_where_they_were_followed(options):
    write_training(options.ssl_experiment, 0.25, langs=())
    line = {"update": 10, "rate": 0.1, "rate_sum": 0.5}
    line["experts"] = {"0.output_dense": {"share": [0.25, 0.5]}}
    line["routers"] = {"0.ffn": {"row": [0.6, 0.7]}}
    path = options.ssl_experiment / "norms.jsonl"
    path.write_text(json.dumps(line) + "\n")
    _curves(options)
    (row,) = csv.DictReader((options.analysis / "norms.csv").open())
    assert (row["run"], row["share"], row["router"]) == ("ssl_lamer", "0.5", "0.7")
    assert (options.analysis / "norms.png").stat().st_size > 1000
