"""Time per update and end date, by a clock that the test moves."""

import re
from datetime import datetime, timedelta

import pytest

from espnet2_lamer.train.pace import WINDOW, Pace


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def run(pace, clock, durations):
    known = []
    for seconds in durations:
        clock.now += seconds
        known.append(pace.update())
    return known


def test_the_pace_is_known_once_after_the_first_updates():
    clock = Clock()
    pace = Pace(50, 3, first=4, clock=clock)
    pace.begin()
    assert pace.eta(1, 0) == ""
    # The first also starts loaders and kernels.
    assert run(pace, clock, [9.0, 1.0, 2.0]) == [False] * 3
    assert pace.seconds_per_update is None and pace.eta(1, 3) == ""
    assert run(pace, clock, [3.0, 2.0]) == [True, False]
    assert pace.seconds_per_update == pytest.approx((1 + 2 + 3 + 2) / 4)


def test_the_time_left_counts_updates_and_validations_to_come():
    clock = Clock()
    pace = Pace(10, 4, first=5, clock=clock)
    pace.begin()
    run(pace, clock, [2.0] * 10)
    # Epochs 2 to 4.
    assert pace.seconds_left(1, 10) == pytest.approx(30 * 2.0)
    assert pace.eta(1, 10).endswith(", validation not counted)")
    clock.now += 7.0
    pace.begin()
    run(pace, clock, [2.0] * 3)
    assert pace.seconds_left(2, 3) == pytest.approx(27 * 2.0 + 3 * 7.0)
    found = pace.eta(2, 3)
    assert found.startswith("0:01:15 (")
    end = datetime.strptime(re.search(r"\((.*)\)", found)[1], "%Y-%m-%d %H:%M")
    assert abs(end - datetime.now() - timedelta(seconds=75)) < timedelta(minutes=2)


def test_a_pace_that_changes_is_followed():
    clock = Clock()
    pace = Pace(10**6, 1, first=2, clock=clock)
    pace.begin()
    run(pace, clock, [1.0] * 500 + [3.0] * WINDOW)
    assert pace.seconds_per_update == pytest.approx(3.0)


def test_days_are_said():
    clock = Clock()
    pace = Pace(100_000, 2, first=2, clock=clock)
    pace.begin()
    run(pace, clock, [1.5] * 3)
    assert pace.eta(1, 3).startswith("3 days, 11:19:56 (")
