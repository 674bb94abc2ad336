"""Norms along a training: what is written, that nothing changes, when it is said."""

import csv
import json
import logging
import shutil
from types import SimpleNamespace

import pytest
import torch

from espnet2_lamer.analysis.norms import read_course
from espnet2_lamer.layers.norms import frozen_norms, norms_of
from espnet2_lamer.tasks.hubert import LamerHubertTask
from espnet2_lamer.train import norm_guard
from espnet2_lamer.train.norm_guard import SEEN, NormGuard, Seen, largest_seen
from espnet2_lamer.train.norms import build_norms, routing_entropies, summary
from tests.train.small_training import CONFIG, command, differences, outcome

SHORT = {"max_epoch": 2, "monitor_utts": 1, "norms_interval": 2}


def train(corpus, output, **changes):
    LamerHubertTask.main(cmd=command(corpus, output, **(SHORT | changes)))
    return output


def lines(output):
    text = (output / "norms.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    return train(corpus, tmp_path_factory.mktemp("norms") / "exp")


def test_a_line_every_interval_and_at_each_epochs_end(trained):
    plan = json.loads((trained / "health.json").read_text())["plan"]
    total, per_epoch = plan["updates"], plan["updates_per_epoch"]
    due = {u for u in range(1, total + 1) if u % 2 == 0 or u % per_epoch == 0}
    found = lines(trained)
    assert [line["update"] for line in found] == sorted(due)
    assert [line["epoch"] for line in found] == [
        1 + (line["update"] - 1) // per_epoch for line in found
    ]
    # Warm-up over 5 of 100 updates up to 0.01, then straight down.
    rates = [
        0.01 * (s / 5 if s <= 5 else 1 - (s - 6) / 95) for s in range(1, total + 1)
    ]
    for line in found:
        assert line["rate"] == pytest.approx(rates[line["update"] - 1], rel=1e-5)
        sums = sum(rates[: line["update"]])
        assert line["rate_sum"] == pytest.approx(sums, rel=1e-5)


def test_the_last_line_has_the_norms_of_the_model(trained):
    model, _ = LamerHubertTask.build_model_from_file(
        trained / "config.yaml", trained / "latest.pth"
    )
    expected = norms_of(model, frozen_norms(model))
    line = lines(trained)[-1]
    assert line["experts"].keys() == expected["experts"].keys()
    for key, one in expected["experts"].items():
        for figure, values in one.items():
            assert line["experts"][key][figure] == pytest.approx(values, rel=1e-5)
    assert line["routers"].keys() == {"0.ffn", "1.ffn"}
    for key, router in line["routers"].items():
        assert router["row"] == pytest.approx(expected["routers"][key]["row"], rel=1e-5)
        assert 0.0 < router["entropy"] <= 1.0 + 1e-6


def test_checkpoints_and_models_of_a_training_without_lines_are_read(trained, tmp_path):
    old = shutil.copytree(trained, tmp_path / "old", symlinks=True)
    (old / "norms.jsonl").unlink()
    last = read_course(trained)[-1]
    found = read_course(old)
    assert [row["update"] for row in found][-1] == last["update"]
    model = read_course(old / "latest.pth")[-1]
    assert model["update"] is None and model["rate_sum"] is None
    for key in ("share", "mean_share", "router"):
        assert found[-1][key] == pytest.approx(last[key], rel=1e-4)
        assert model[key] == pytest.approx(last[key], rel=1e-4)
    assert found[-1]["rate_sum"] == pytest.approx(last["rate_sum"], rel=1e-4)


def test_epochs_report_the_summary_of_their_last_line(trained):
    figures = outcome(trained)["figures"]
    for epoch in (1, 2):
        last = [line for line in lines(trained) if line["epoch"] == epoch][-1]
        for key, value in summary(last).items():
            assert figures[f"{epoch}.train.norms_{key}"] == value
        assert set(summary(last)) == {"share", "mean_share", "router"}


def test_a_training_is_the_same_to_the_bit_without_norms(corpus, trained, tmp_path):
    off = train(corpus, tmp_path / "off", norms_interval=0)
    assert not (off / "norms.jsonl").exists()
    one, two = outcome(trained), outcome(off)
    for key in list(one["figures"]):
        if ".norms_" in key:
            del one["figures"][key]
    one["norms"] = two["norms"]
    assert differences(one, two) == []


def test_a_model_without_experts_has_no_file(tmp_path):
    options = SimpleNamespace(norms_interval=2, output_dir=tmp_path)
    run = SimpleNamespace(is_first=True, options=options, model=torch.nn.Linear(2, 2))
    assert build_norms(run) is None


def test_entropies_are_means_over_frames_and_1_for_a_uniform_choice():
    row = {"layer": 3, "router": "ffn", "experts": 4}
    row["masked"] = {"entropy": torch.tensor(4.0).log().item()}
    row["unmasked"] = {"entropy": 0.0}
    reading = {"frames": {"masked": 30, "unmasked": 10}, "routers": [row]}
    assert routing_entropies(reading) == {"3.ffn": pytest.approx(0.75)}
    assert routing_entropies({}) == {}


def line_of(update, share, row=0.6):
    return {
        "update": update,
        "rate_sum": update / 100,
        "experts": {"0.output_dense": {"share": [share / 2, share]}},
        "routers": {"0.ffn": {"row": [row]}},
    }


def guard_of(tmp_path, report=None):
    report = {} if report is None else report
    return NormGuard(SimpleNamespace(path=tmp_path / "health.json", report=report))


def follow(guard, courses):
    for line in courses:
        guard.look(line, summary(line))
    return guard.health.report.get("norms", {})


def test_leaving_the_range_is_said_once_per_kind_and_noted(tmp_path, caplog):
    seen = largest_seen()
    high = line_of(500, 1.1 * seen["share"].value, 1.1 * seen["router"].value)
    guard = guard_of(tmp_path)
    assert follow(guard, [line_of(1, 0.9 * seen["share"].value)]) == {}
    assert set(follow(guard, [high, high | {"update": 1000}])) == {"share", "router"}
    assert len(caplog.records) == 2
    for text in (seen["share"].run, "optim_conf.lr", "update_bins", "goes on"):
        assert text in caplog.text
    noted = json.loads((tmp_path / "health.json").read_text())["norms"]
    assert noted["share"]["update"] == 500
    assert noted["share"]["limit"] == seen["share"].value
    # A resumed training has the report, and says nothing twice.
    follow(guard_of(tmp_path, {"norms": noted}), [high])
    assert len(caplog.records) == 2


def test_growth_beyond_its_own_course_is_said_below_the_range(
    tmp_path, caplog, monkeypatch
):
    wide = {"share": Seen(1e9, "", 0), "router": Seen(1e9, "", 0)}
    monkeypatch.setattr(norm_guard, "largest_seen", lambda: wide)
    steady = [line_of(u, 0.5 * (u / 100) ** 0.8) for u in range(50, 4001, 50)]
    assert follow(guard_of(tmp_path), steady) == {}
    turned = [
        line_of(u, 0.5 * (u / 100) ** 0.8 * max(1.0, u / 2000) ** 2)
        for u in range(50, 4001, 50)
    ]
    found = follow(guard_of(tmp_path), turned)
    assert set(found) == {"growth"}
    # (u / 2000)^2 passes RUNAWAY there.
    assert 2000 * norm_guard.RUNAWAY**0.5 < found["growth"]["update"] < 2800
    assert "half of the learning rates" in caplog.text


def test_the_committed_trainings_are_within_their_own_range(tmp_path):
    path = norm_guard.files("espnet2_lamer.train").joinpath(SEEN)
    runs = {}
    for row in csv.DictReader(path.read_text().splitlines()):
        runs.setdefault(row["run"], []).append(row)
    assert runs
    for rows in runs.values():
        guard = guard_of(tmp_path)
        for row in rows:
            line = line_of(
                int(row["update"]), float(row["share"]), float(row["router"])
            )
            guard.look(line | {"rate_sum": float(row["rate_sum"])}, summary(line))
        assert guard.health.report == {}


def test_an_absurd_rate_is_said_and_training_goes_on(corpus, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        output = train(corpus, tmp_path / "exp", optim_conf={"lr": 30.0}, max_epoch=1)
    report = json.loads((output / "health.json").read_text())["norms"]
    assert "share" in report
    assert caplog.text.count("norms.share") == 1
    assert outcome(output)["updates"] > report["share"]["update"]


def test_a_usual_rate_is_not_said(trained):
    assert "norms" not in json.loads((trained / "health.json").read_text())
    assert CONFIG["optim_conf"]["lr"] == 0.01
