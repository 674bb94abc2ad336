"""How far two runs lie apart: from an experiment's table into verdicts and tables."""

import csv

import numpy as np
import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.changes import (
    GAINED,
    KEPT,
    LOST,
    UNTOLD,
    Change,
    Question,
    find_changes,
    how_sure,
)
from espnet2_lamer.evaluation.spread import Spread, read_spread, read_spreads
from tests.evaluation.test_changes import CMN, LID, data_of, figure, versus

COLUMNS = "measure system seeds difference effect".split()


def write(path, rows):
    """Write what ``bin.experiment`` does, of differences by seed."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for measure, system, by_seed in rows:
            mean, sd = np.mean(by_seed), np.std(by_seed, ddof=1)
            seeds = " ".join(map(str, range(len(by_seed))))
            table.writerow([measure, system, seeds, mean, mean / sd])
    return path


def test_two_runs_disagree_by_less_in_95_of_100_pairs(tmp_path):
    rng = np.random.default_rng(0)
    inside = []
    for number in range(400):
        runs = rng.normal(-1.0, 2.0, 5)
        path = write(
            tmp_path / "spread.csv", [("ASR error cmn (pinyin)", "lamer", runs)]
        )
        apart = read_spread(path).of("recognition", "cmn")
        first, second = rng.normal(-1.0, 2.0, (2, 500))
        inside.append(np.mean(np.abs(first - second) < apart))
        assert number or apart > 2.0
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


def test_measures_are_called_as_in_results_and_the_larger_deviation_counts(tmp_path):
    rows = [
        ("LID accuracy cmn (most probable tag)", "lamer", [1.0, 2.0, 3.0]),
        ("LID accuracy cmn (first tag)", "lamer", [1.0, 9.0, 3.0]),
        ("LID accuracy (first tag)", "lamer", [1.0, 9.0, 30.0]),
        ("masked accuracy yue", "lamer", [1.0, 2.0, 3.0]),
        ("masked accuracy yue", "lamer_float32", [1.0, 3.0, 5.0]),
        ("masked accuracy yue", "milore", [1.0, 30.0, 5.0]),
        ("CKA to base yue", "lamer", [0.1, 0.2, 0.3]),
    ]
    spread = read_spread(write(tmp_path / "spread.csv", rows))
    unit = 4.302653 * 2**0.5  # t of 0.975 with two degrees of freedom
    assert spread.runs == {str(tmp_path / "spread.csv"): 3}
    named = {
        ("identification by most probable tag", "cmn"): unit,
        ("masked units", "yue"): 2 * unit,
    }
    for (what, lang), points in named.items():
        assert spread.of(what, lang) == pytest.approx(points, rel=1e-6)
    assert spread.of("identification by first tag", "cmn") > 4 * unit
    sd = np.std([1.0, 9.0, 30.0], ddof=1)
    whole = spread.of("identification by first tag", "")
    assert whole == pytest.approx(sd * unit, rel=1e-6)
    assert spread.of("phones", "yue") is None


def test_either_of_the_two_may_be_the_tables_baseline(tmp_path):
    (tmp_path / "spread.csv").write_text(
        "measure,system,seeds,difference,effect\n"
        "phone probe eng,lamer,0 1 2,,\n"
        "phone probe eng,teacher,0 1 2,9.0,0.1\n"
        "phone probe eng,base,0 1 2,-3.0,-1.5\n"
    )
    spread = read_spread(tmp_path / "spread.csv")
    assert spread.of("phones", "eng") == pytest.approx(4.302653 * 2**0.5 * 2.0)


def test_of_several_files_the_first_that_has_a_measure_counts(tmp_path):
    first = write(tmp_path / "a.csv", [("phone probe eng", "lamer", [1.0, 2.0, 3.0])])
    rows = [
        ("phone probe eng", "lamer", [1.0, 20.0, 3.0]),
        ("LID accuracy cmn (first tag)", "lamer", [1.0, 3.0, 5.0, 7.0]),
    ]
    second = write(tmp_path / "b.csv", rows)
    found = read_spreads([first, second])
    assert found.of("phones", "eng") == read_spread(first).of("phones", "eng")
    lid = ("identification by first tag", "cmn")
    assert found.of(*lid) == read_spread(second).of(*lid) is not None
    assert found.runs == {str(first): 3, str(second): 3}
    assert read_spreads([]) == Spread()
    assert Question("lamer", (), (), ()).as_dict()["spread"] is None


@pytest.mark.parametrize("text", ["measure,mean\na,1\n", ",".join(COLUMNS) + "\n"])
def test_another_table_is_refused(text, tmp_path):
    (tmp_path / "spread.csv").write_text(text)
    with pytest.raises(RecipeError, match=r"spread\.csv"):
        read_spread(tmp_path / "spread.csv")


@pytest.mark.parametrize(
    ("value", "low", "high", "old", "spread", "expected"),
    [
        (2.0, 1.0, 3.0, False, 1.9, GAINED),
        (2.0, 1.0, 3.0, False, 2.0, UNTOLD),
        (-2.0, -3.0, -1.0, True, 1.9, LOST),
        (-2.0, -3.0, -1.0, True, 2.1, UNTOLD),
        # Kept where another run would not have lost more than a point either.
        (0.5, -0.4, 1.4, True, 1.4, KEPT),
        (0.5, -0.4, 1.4, True, 1.6, UNTOLD),
        (2.0, 1.0, 3.0, False, None, GAINED),
    ],
)
def test_inside_the_spread_nothing_is_gained_or_lost(
    value, low, high, old, spread, expected
):
    found = Change("cmn", "recognition", "", "base", value, low, high, 0.001, old, 40)
    assert found.verdict in (GAINED, LOST, KEPT)
    row = vars(found) | {"spread": spread}
    assert Change(**row).verdict == expected


def test_every_figure_of_the_system_has_its_own_spread():
    points = {
        ("recognition", "cmn"): 3.0,
        ("identification by most probable tag", "cmn"): 8.0,
    }
    spread = Spread(points, {"conf/spread/mini.csv": 5, "lid.csv": 3})
    asked = Question("lamer", ("base",), ("cmn",), (), {CMN: "cmn"}, spread=spread)
    found = find_changes(
        asked,
        [
            figure(CMN, "error rate", [versus(-2.0, -3.0, -1.0)]),
            figure(LID, "accuracy", [versus(9.0, 8.0, 10.0)]),
            figure(CMN, "error rate", [versus(-2.0, -3.0, -1.0)], system="base"),
        ],
    )
    assert [(c.spread, c.verdict) for c in found] == [(3.0, UNTOLD), (8.0, GAINED)]
    text = how_sure(data_of(*found, question=asked))
    assert "5 runs, conf/spread/mini.csv; 3 runs, lid.csv" in text
    assert "not measured for these options" in how_sure(data_of(*found))
