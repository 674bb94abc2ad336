"""Tables: every figure with its interval, claims judged, what is missing said."""

import csv
import io
import json

import numpy as np
import pytest

from espnet2_lamer.experiments.tables import Tables, judge, markdown
from espnet2_lamer.metrics.bootstrap import Difference

HEADER = {"command": "python -m it", "commit": "abc", "machine": "a box"}


def tables(small):
    return Tables(small.matrix(), HEADER)


def test_before_any_cell_every_row_reads_not_run(small):
    page = markdown(tables(small))
    assert "![" not in page
    assert "|good|the good one|0 of 3|" in page
    assert "bad, seed 2: not run" in page
    assert "|bad is worse|ASR error eng, bad minus good|-|-|-|not run|" in page
    assert "- cells ran on: `not run`" in page


def test_the_head_carries_command_commit_machine_seeds_and_progress(small):
    small.matrix().run("*/0")
    for path in small.root.glob("cells/*/record.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "seconds": 200}))
    page = markdown(tables(small))
    for line in (
        "- command: `python -m it`",
        "- commit: `abc`",
        "- machine: `a box`",
        "- seeds: `0 1 2`",
        "- cells done: `2 of 6`",
        # Of the cells together, however many ran at a time.
        "- cells took: `7 min in all`",
    ):
        assert line in page


def test_a_system_without_cells_reads_not_run_beside_one_with(small):
    small.matrix().run("good/*")
    rows = {(r.of.name, r.system): r for r in tables(small).rows}
    assert list(rows["ASR error eng", "good"].trainings) == [0, 1, 2]
    assert rows["ASR error eng", "bad"].measure is None
    page = markdown(tables(small))
    assert "|bad|0|not run|-|-|-|-|-|-|-|" in page


def test_values_differences_and_claims_are_those_of_the_cells(small):
    small.matrix().run()
    found = tables(small)
    row = found.row("ASR error eng", "bad")
    # 10 errors more of 50 tokens in each of the utterances.
    assert row.difference.value == pytest.approx(20)
    assert row.difference.interval == pytest.approx((20, 20))
    (verdict,) = found.verdicts
    assert verdict.verdict == "holds"
    page = markdown(found)
    # 20 points worse in every seed; CKA is the same.
    good, bad = (found.row("ASR error eng", name).measure for name in ("good", "bad"))
    assert (
        f"|ASR error eng|{good.value:.2f} ± {good.deviation:.2f}|"
        f"**{bad.value:.2f} ± {bad.deviation:.2f}**|"
    ) in page
    assert "|CKA to base eng \\*|0.500 ± 0.000|0.500 ± 0.000|" in page
    values = json.loads(json.dumps(found.as_json()))
    json_row = next(
        r
        for r in values["rows"]
        if (r["measure"], r["system"]) == ("ASR error eng", "bad")
    )
    lines = list(csv.DictReader(io.StringIO(found.as_csv())))
    csv_row = next(
        r for r in lines if (r["measure"], r["system"]) == ("ASR error eng", "bad")
    )
    for key in ("mean", "deviation", "low", "high", "difference", "p"):
        assert float(csv_row[key]) == json_row[key]
    assert json_row["mean"] == pytest.approx(np.mean([*row.trainings.values()]))
    assert f"|{json_row['mean']:.2f}|" in markdown(found)


def test_failed_cells_are_listed_with_reason_and_log(small):
    small.broken["bad", 1] = RuntimeError("out of luck")
    small.matrix().run()
    page = markdown(tables(small))
    assert "- bad, seed 1: failed: RuntimeError: out of luck; log `" in page
    assert "|bad||2 of 3|" in page


def test_only_figures_without_heads_are_starred(small):
    small.matrix().run("*/0")
    page = markdown(tables(small))
    assert "## CKA to base eng \\*" in page
    assert "## ASR error eng\n" in page


def test_means_of_different_seeds_are_not_offered_for_comparison(small):
    small.matrix().run("*/0")
    assert "by their differences" not in markdown(tables(small))
    small.matrix().run("good/*")
    assert "compare them by their differences" in markdown(tables(small))


def test_the_picture_beside_the_page_is_shown(small):
    small.matrix().run()
    page = markdown(tables(small), "small.png")
    assert "![Differences to good](small.png)\n" in page


@pytest.mark.parametrize(
    ("interval", "better", "expect", "verdict"),
    [
        ((1, 2), "lower", "worse", "holds"),
        ((1, 2), "lower", "better", "does not hold"),
        ((1, 2), "higher", "better", "holds"),
        ((-2, -1), "higher", "worse", "holds"),
        ((1, 2), "neither", "higher", "holds"),
        ((-2, -1), "neither", "higher", "does not hold"),
        ((-2, -1), "neither", "lower", "holds"),
        ((1, 2), "lower", "lower", "does not hold"),
        ((-2, -1), "lower", "worse", "does not hold"),
        ((-1, 2), "lower", "worse", "cannot be told"),
        ((-1, 2), "lower", "equal", "no difference shown"),
        ((1, 2), "lower", "equal", "does not hold"),
        (None, "lower", "worse", "cannot be told (one seed)"),
    ],
)
def test_a_claim_is_judged_by_the_interval_of_the_difference(
    interval, better, expect, verdict
):
    difference = Difference(1.0, interval, 0.5, seeds=(0, 1))
    assert judge(difference, better, expect) == verdict


def test_backward_transfer_is_the_last_step_minus_the_languages_own(small):
    small.change("claims:", "transfer: {good: eng, bad: yue}\nclaims:")
    small.matrix().run()
    found = tables(small)
    entry = found.transfer()["ASR error eng"]
    assert entry["backward_transfer"] == found.row("ASR error eng", "bad").difference
    saved = found.as_json()["transfer"]["ASR error eng"]["backward_transfer"]
    steps = entry["steps"]
    assert saved["mean"] == pytest.approx(steps["bad"] - steps["good"])
    json.dumps(found.as_json())
    page = markdown(found)
    header = "|measure|good (eng)|bad (yue)|backward transfer|95 % interval|p|"
    assert header in page
    low, high = saved["interval"]
    assert f"|{saved['mean']:+.2f}|{low:+.2f} to {high:+.2f}|" in page


def test_what_the_last_step_learnt_has_no_backward_transfer(small):
    small.change("claims:", "transfer: {good: yue, bad: eng}\nclaims:")
    small.matrix().run()
    assert tables(small).transfer()["ASR error eng"]["backward_transfer"] is None
