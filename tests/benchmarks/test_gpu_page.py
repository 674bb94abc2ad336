"""``make bench-gpu``: one page, whatever fails on the way."""

import sys
import time

import pytest
import torch

from benchmarks import gpu, report
from benchmarks.__main__ import get_parser
from benchmarks.gpu import RUNS, Run, main, measure, measure_all
from espnet2_lamer.errors import RecipeError


@pytest.fixture
def card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB")


def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    page = tmp_path / "GPU.md"
    with pytest.raises(RecipeError, match="torch finds no GPU") as error:
        main(["--output", str(page)])
    assert "\n" not in str(error.value)
    assert not page.exists()


def test_the_page_has_the_card_and_what_was_measured(card, monkeypatch, tmp_path):
    def measured(run, output, seconds):
        assert 0 < seconds <= 600 * run.share
        if run.section == "peers":
            return "exit code 1: no peft"
        name = run.section + ("" if "cpu" in run.arguments else "-gpu")
        report.update(output, report.Section(name, "title", {"date": "now"}, ["text"]))
        return ""

    monkeypatch.setattr(gpu, "measure", measured)
    page = tmp_path / "GPU.md"
    with pytest.raises(RecipeError, match=r"not measured: peers: exit code 1: no peft"):
        main(["--output", str(page)])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# GPU (NVIDIA H100 80GB)\n\n- measured on: GPU (NVIDIA")
    assert "- not measured: peers (exit code 1: no peft)\n" in text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        f"## {name}: title"
        for name in ("step-gpu", "counts", "kmeans-gpu", "labels-gpu")
    ]
    assert "Written by" not in text


def test_the_page_is_there_after_each_section(card, monkeypatch, tmp_path):
    page = tmp_path / "GPU.md"
    seen = []

    def measured(run, output, seconds):
        seen.append(page.exists())
        return "nothing"

    monkeypatch.setattr(gpu, "measure", measured)
    assert len(measure_all(page, 10.0)) == len(RUNS)
    assert seen == [False, *[True] * (len(RUNS) - 1)]


def test_every_run_is_a_command_that_is_understood():
    for run in RUNS:
        get_parser().parse_args(["--only", run.section, *run.arguments])
        assert 0 < run.share <= 1


def test_a_section_that_takes_too_long_is_ended_with_its_children(
    monkeypatch, tmp_path
):
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nsleep 60 & echo $! > "{tmp_path}/pid"\nwait\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    reason = measure(Run("step", (), 1.0), tmp_path / "out.md", 1.0)
    assert reason == "stopped after 1 s, which it may take"
    child = (tmp_path / "pid").read_text().strip()
    for _ in range(200):
        try:
            with open(f"/proc/{child}/stat", encoding="utf-8") as stat:
                state = stat.read().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            break
        if state == "Z":
            break
        time.sleep(0.01)
    else:
        pytest.fail("what it had started runs on")


def test_a_section_that_fails_leaves_its_last_word(monkeypatch, tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho first\necho 'no room' >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    reason = measure(Run("step", (), 1.0), tmp_path / "out.md", 30.0)
    assert reason == "exit code 3: no room"


def test_the_gpu_is_hidden_from_what_is_counted_without_it(monkeypatch, tmp_path):
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho "seen: $CUDA_VISIBLE_DEVICES."; exit 1\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    for device, seen in (("cpu", "seen: ."), ("cuda", "seen: 2.")):
        run = Run("step", ("--device", device), 1.0)
        assert measure(run, tmp_path / "out.md", 30.0) == f"exit code 1: {seen}"
