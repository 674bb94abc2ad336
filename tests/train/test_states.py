"""Random numbers and ESPnet's reports survive a checkpoint as plain values."""

import datetime
import io
import math
import random

import numpy as np
import pytest
import torch
from espnet2.train.reporter import Reporter

from espnet2_lamer.train.checkpoint import (
    random_state,
    reporter_state,
    set_random_state,
    set_reporter_state,
    set_sub_reporter_state,
    sub_reporter_state,
)
from tests.pretended_gpu import pretended_gpu


def through_a_file(value):
    """Save and load without unpickling, as checkpoints are."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, map_location="cpu", weights_only=True)


def draw():
    return (
        [random.random(), random.gauss(0, 1)],
        [np.random.random(), np.random.standard_normal()],
        torch.rand(3).tolist(),
    )


@pytest.fixture
def undisturbed():
    """Give the suite its random numbers back."""
    before = random_state("cpu")
    yield
    set_random_state(before, "cpu")


def test_every_generator_goes_on_where_it_was(undisturbed):
    random.seed(0)
    np.random.seed(0)
    # An odd number of normal variates: Python and NumPy keep the second of a pair.
    draw()
    saved = through_a_file(random_state("cpu"))
    expected = [draw() for _ in range(3)]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    set_random_state(saved, "cpu")
    assert [draw() for _ in range(3)] == expected


def test_random_numbers_of_a_gpu_go_on_where_they_were(undisturbed):
    with pretended_gpu():
        torch.manual_seed(0)
        torch.rand(3, device="cuda")
        saved = through_a_file(random_state("cuda"))
        expected = torch.rand(3, device="cuda").tolist()
        torch.manual_seed(1)
        set_random_state(saved, "cuda")
        assert torch.rand(3, device="cuda").tolist() == expected


def test_going_on_elsewhere_is_said(undisturbed, caplog):
    here = random_state("cpu")
    with pretended_gpu():
        set_random_state(here, "cuda")
        there = random_state("cuda")
    assert "saved on cpu and resumed on cuda" in caplog.text
    caplog.clear()
    set_random_state(there, "cpu")
    assert "saved on cuda and resumed on cpu" in caplog.text
    caplog.clear()
    set_random_state(here, "cpu")
    assert not caplog.text


def report(steps, reporter):
    """Register ``steps``; the second figure appears late, the third is weighted."""
    for step in steps:
        figures = {"train_time": 0.5 * step}
        if step > 2:
            figures["late"] = float(step)
        reporter.register(figures)
        reporter.register({"loss": 1.0 / step}, 10 * step)
        reporter.next()


def figures(stats):
    return {key: value for key, value in stats.items() if key != "time"}


def same(one, two):
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert value == two[key] or math.isnan(value) and math.isnan(two[key]), key


@pytest.mark.parametrize("done", [1, 2, 3, 5])
def test_an_epoch_that_was_interrupted_reports_as_if_it_was_not(done):
    whole = Reporter()
    with whole.observe("train", 1) as reporter:
        report(range(1, 7), reporter)
    interrupted = Reporter().start_epoch("train", 1)
    report(range(1, done + 1), interrupted)
    saved = through_a_file(sub_reporter_state(interrupted))
    resumed = Reporter()
    with resumed.observe("train", 1) as reporter:
        set_sub_reporter_state(reporter, saved)
        assert reporter.log_message(-1) == interrupted.log_message(-1)
        report(range(done + 1, 7), reporter)
    same(figures(whole.stats[1]["train"]), figures(resumed.stats[1]["train"]))
    assert resumed.stats[1]["train"]["total_count"] == 6


def test_earlier_epochs_stay_comparable():
    reporter = Reporter()
    for epoch in (1, 2, 3):
        with reporter.observe("valid", epoch) as sub:
            sub.register({"loss_m": abs(epoch - 2.0), "acc": np.float64(epoch)}, 5)
            sub.next()
    resumed = Reporter()
    set_reporter_state(resumed, through_a_file(reporter_state(reporter)))
    assert resumed.get_epoch() == 3
    assert resumed.sort_epochs("valid", "loss_m", "min")[0] == 2
    assert resumed.stats == reporter.stats
    assert isinstance(resumed.stats[1]["valid"]["time"], datetime.timedelta)
    # The log counts batches over all epochs.
    reporters = [r.start_epoch("valid", 4) for r in (reporter, resumed)]
    assert [r.total_count for r in reporters] == [3, 3]
