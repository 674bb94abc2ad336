"""The matrix: cells run once, go on after kills, and fail alone."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.locks import WHOLE, Busy, exclusive

ALL = [(system, seed) for seed in range(3) for system in ("good", "bad")]


def test_every_cell_runs_once_and_its_data_once(small):
    assert small.matrix().run() == []
    assert small.ran == ALL
    assert len(small.made) == 1
    small.ran.clear()
    assert small.matrix().run() == []
    assert small.ran == []
    assert len(small.made) == 1


def test_a_changed_definition_runs_only_what_changed(small):
    small.matrix().run()
    small.ran.clear()
    small.change("rank: 1}", "rank: 2}")
    small.matrix().run()
    assert small.ran == [("bad", seed) for seed in range(3)]
    small.ran.clear()
    small.change("seeds: [0, 1, 2]", "seeds: [0, 1, 2, 3]")
    small.matrix().run()
    assert small.ran == [("good", 3), ("bad", 3)]


def test_a_failing_cell_stops_no_other_and_is_tried_again(small):
    small.broken["bad", 0] = RecipeError("no luck")
    small.broken["good", 1] = ZeroDivisionError("oops")
    matrix = small.matrix()
    failed = matrix.run()
    assert [c.label for c in failed] == ["bad, seed 0", "good, seed 1"]
    assert small.ran == ALL
    status = {(c.system, c.seed): matrix.status(c) for c in matrix.cells}
    assert status["bad", 0].why == "no luck"
    assert status["bad", 0].log.endswith("log.txt")
    assert status["good", 1].why == "ZeroDivisionError: oops"
    assert {s.state for s in status.values()} == {"done", "failed"}
    small.broken.clear()
    small.ran.clear()
    assert small.matrix().run() == []
    assert small.ran == [("bad", 0), ("good", 1)]


def test_a_killed_cell_leaves_no_record_and_runs_again(small):
    small.broken["bad", 1] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        small.matrix().run()
    assert small.ran == ALL[:4]
    small.broken.clear()
    small.ran.clear()
    matrix = small.matrix()
    assert matrix.run() == []
    assert small.ran == ALL[3:]
    # Both starts count, or the plan would promise too little.
    cell = next(c for c in matrix.cells if (c.system, c.seed) == ("bad", 1))
    spent = matrix.store.read(matrix.store.cell(cell.key), "spent.json")
    assert spent["seconds"] >= 0


def test_a_torn_record_does_not_count_as_done(small):
    matrix = small.matrix()
    matrix.run()
    path = matrix.store.cell(matrix.cells[0].key) / "record.json"
    path.write_text(path.read_text()[:50])
    small.ran.clear()
    small.matrix().run()
    assert small.ran == ALL[:1]


def test_failed_data_fail_their_cells_once(small):
    matrix = small.matrix()

    def fail(data, lock):
        small.made.append(data.key)
        raise RecipeError("no data")

    matrix.run_data = fail
    assert len(matrix.run()) == 6
    assert small.ran == []
    assert len(small.made) == 1
    assert {matrix.status(c).why for c in matrix.cells} == {"no data"}


def test_a_cell_waits_for_the_cell_it_reads(small):
    small.change("    bad:\n", "    bad:\n        data: {teacher: '{cell:good}'}\n")
    small.broken["good", 1] = RecipeError("no luck")
    matrix = small.matrix()
    matrix.run()
    assert ("bad", 1) not in small.ran
    assert ("bad", 2) in small.ran
    waiting = next(c for c in matrix.cells if (c.system, c.seed) == ("bad", 1))
    assert matrix.status(waiting).why == "needs good, seed 1"


def test_a_time_budget_leaves_cells_that_would_not_end_in_time(small, caplog):
    matrix = small.matrix()
    # Data of 2 minutes and a cell of 3 do not fit.
    matrix.run(budget=4)
    assert small.ran == []
    matrix.run(budget=5.5)
    assert small.ran == ALL  # the fakes end at once, and are then known to


def test_a_pattern_chooses_cells_and_one_that_fits_none_is_refused(small):
    small.matrix().run("bad/[01]")
    assert small.ran == [("bad", 0), ("bad", 1)]
    small.matrix().run("good")
    assert small.ran[2:] == [("good", seed) for seed in range(3)]
    with pytest.raises(RecipeError, match="'ugly/0', which matches no cell"):
        small.matrix().run("ugly/0")


def test_the_plan_estimates_by_the_definition_and_then_by_what_was_seen(small):
    matrix = small.matrix()
    plan = matrix.plan()
    assert plan[-1] == "in all about 20 min"  # data 2, six cells of 3
    matrix.run("good/0")
    path = matrix.store.cell(matrix.cells[0].key) / "record.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "seconds": 60.0}))
    plan = matrix.plan()
    assert plan[0].startswith("good, seed 0: done")
    assert plan[-1] == "in all about 5 min"


def test_an_orphan_of_a_killed_process_keeps_its_cell(small):
    matrix = small.matrix()
    directory = matrix.store.cell(matrix.cells[0].key)
    script = textwrap.dedent(
        f"""
        import subprocess, sys, time
        from pathlib import Path
        from espnet2_lamer.fileio.locks import exclusive
        with exclusive(Path({str(directory / WHOLE)!r}), wait=False) as lock:
            child = subprocess.Popen(["sleep", "60"], pass_fds=(lock,))
            print(child.pid, flush=True)
            time.sleep(60)
        """
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    )
    orphan = int(parent.stdout.readline())
    try:
        parent.kill()
        parent.wait()
        with pytest.raises(Busy, match="a process that it started goes on"):
            with exclusive(directory / WHOLE, wait=False):
                pass
        assert small.matrix().run() == []
        assert small.ran == ALL[1:]
    finally:
        os.kill(orphan, signal.SIGKILL)
    assert small.matrix().run() == []
    assert small.ran == [*ALL[1:], ALL[0]]
