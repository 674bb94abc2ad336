"""``analyze --norms``: trainings old and new, fits, predictions, the guard's file."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
import yaml

from espnet2_lamer.analysis.norms import (
    COLUMNS,
    Course,
    norms_report,
    read_course,
    read_courses,
    report_lines,
    schedule_end,
)
from espnet2_lamer.bin import analyze
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.train.norm_guard import SEEN
from espnet2_lamer.train.update import PolynomialDecayLR

CONF = Path(__file__).parents[2] / "conf"


def lines_of(updates, power=1.0, rate=0.01, keep=("rate", "rate_sum")):
    """A training at one rate whose norms are a power of the rate sum."""
    for update in updates:
        share = 0.5 * (rate * update) ** power
        line = {"update": update, "epoch": 1, "rate": rate, "rate_sum": rate * update}
        line = {k: v for k, v in line.items() if not k.startswith("rate") or k in keep}
        line["experts"] = {"0.output_dense": {"share": [share, share / 3]}}
        line["routers"] = {"0.ffn": {"row": [0.1 * share, 0.2 * share]}}
        yield line


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_training_is_read_from_its_file_or_its_folder(tmp_path):
    path = write(tmp_path / "ssl_lamer" / "norms.jsonl", lines_of([100, 200]))
    rows = read_course(path)
    assert rows == read_course(path.parent)
    assert rows[1] == {
        "update": 200,
        "rate_sum": 2.0,
        "share": 1.0,
        "mean_share": pytest.approx(2 / 3),
        "router": pytest.approx(0.2),
    }
    other = write(tmp_path / "b" / "ssl_lamer" / "norms.jsonl", lines_of([100]))
    third = write(tmp_path / "short.jsonl", lines_of([100]))
    names = [course.name for course in read_courses([path, other.parent, third])]
    assert names == [str(path), str(other.parent), "short"]


def test_rates_alone_are_added_up(tmp_path):
    path = write(tmp_path / "x.jsonl", lines_of(range(50, 1001, 50), keep=("rate",)))
    # A constant rate, but that it rises from 0 up to the first line.
    found = [row["rate_sum"] for row in read_course(path)]
    assert found == pytest.approx([0.25 + 0.5 * k for k in range(20)])


@pytest.mark.parametrize("text", ["{", "[]\n", '{"update": 1}\n', "", '{"epoch": 1}\n'])
def test_what_is_no_training_is_refused_by_name(tmp_path, text):
    path = tmp_path / "norms.jsonl"
    path.write_text(text)
    with pytest.raises(RecipeError, match="norms.jsonl"):
        read_course(path)


def test_the_end_of_a_schedule_is_the_schedulers_own(tmp_path):
    path = tmp_path / "conf.yaml"
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.0045)
    scheduler = PolynomialDecayLR(optimizer, warmup_steps=64, total_steps=640)
    total = 0.0
    for _ in range(640):
        total += optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
    conf = {"optim_conf": {"lr": 0.0045}, "scheduler": "polynomialdecaylr"}
    conf["scheduler_conf"] = {"warmup_steps": 64, "total_steps": 640}
    path.write_text(yaml.safe_dump(conf))
    assert schedule_end(path) == (640, pytest.approx(total))
    path.write_text(yaml.safe_dump(conf | {"scheduler": "noamlr"}))
    with pytest.raises(RecipeError, match="scheduler: found 'noamlr', expected poly"):
        schedule_end(path)
    assert schedule_end(CONF / "train_ssl_lamer.yaml")[1] == pytest.approx(300, 1e-3)


def course(name, updates, **changes):
    rows = [
        {
            "update": line["update"],
            "rate_sum": line["rate_sum"],
            "share": line["experts"]["0.output_dense"]["share"][0],
            "mean_share": 0.0,
            "router": line["routers"]["0.ffn"]["row"][1],
        }
        for line in lines_of(updates, **changes)
    ]
    return Course(name, rows)


def test_fits_are_told_with_what_they_predict_elsewhere():
    one = course("one", range(10, 1001, 10))
    two = course("two", range(10, 501, 10), rate=0.03, power=1.1)
    report = norms_report([one, two], {"long": (9000, 90.0)})
    fit = report["one"]["norms"]["share"]
    assert (fit["factor"], fit["power"]) == (pytest.approx(0.5), pytest.approx(1.0))
    assert fit["across"] == {"two": pytest.approx(15.0**0.1)}
    guess = fit["predicted"]["long"]
    assert guess["value"] == pytest.approx(45.0)
    assert guess["interval"] == pytest.approx([45.0, 45.0])
    said = report_lines(report)
    assert any("one -> long, largest share after 9000 updates" in x for x in said)
    assert norms_report([course("few", [1, 2])], {})["few"]["norms"] == {}


def test_the_command_writes_what_the_guard_reads(tmp_path, caplog):
    sources = [
        write(tmp_path / f"{name}.jsonl", lines_of(range(50, 2001, 50), rate=rate))
        for name, rate in (("slow", 0.01), ("fast", 0.03))
    ]
    schedule = CONF / "train_ssl_lamer.yaml"
    given = ["--norms", *map(str, sources), "--schedules", str(schedule)]
    caplog.set_level("INFO")
    analyze.main([*given, "--output", str(tmp_path / "out")])
    text = (tmp_path / "out" / "norms.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 80
    assert float(rows[-1]["share"]) == pytest.approx(30.0)
    report = json.loads((tmp_path / "out" / "norms.json").read_text())
    guess = report["fast"]["norms"]["share"]["predicted"][str(schedule)]
    assert guess["value"] == pytest.approx(0.5 * guess["rate_sum"], rel=1e-4)
    assert (tmp_path / "out" / "norms.png").stat().st_size > 5000
    assert "400000 updates, rate sum 300" in caplog.text
    # The committed file is of this form.
    from espnet2_lamer.train import norm_guard

    committed = Path(norm_guard.__file__).with_name(SEEN).read_text()
    assert tuple(committed.splitlines()[0].split(",")) == COLUMNS


@pytest.mark.parametrize(
    "given", [[], ["--model", "m"], ["--norms", "a", "--model", "m"]]
)
def test_either_a_model_with_speech_or_norms(given, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        analyze.main([*given, "--output", str(tmp_path)])
    assert "expected either --model and --data, or --norms" in capsys.readouterr().err


def test_miss_and_times_agree():
    bent = course("bent", range(10, 1001, 10))
    for row in bent.rows:
        if row["rate_sum"] > 5.0:
            row["share"] *= (row["rate_sum"] / 5.0) ** 0.5
    report = norms_report([bent], {})
    miss = report["bent"]["norms"]["share"]["miss"]
    assert math.exp(miss) == pytest.approx(2.0**0.5)
    assert any("within a factor of 1.41" in line for line in report_lines(report))
