"""Tables: every figure with its interval, claims judged, what is missing said."""

import json

import numpy as np
import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.experiments.measures import KINDS, CellMeasure, Name, rate
from espnet2_lamer.experiments.page import write_page
from espnet2_lamer.experiments.tables import Tables, judge
from espnet2_lamer.metrics.bootstrap import Difference
from espnet2_lamer.metrics.measure import compare
from espnet2_lamer.metrics.tables import read_csv

HEADER = {"command": "python -m it", "commit": "abc", "machine": "a box"}


def tables(small):
    return Tables.of_cells(small.matrix(), HEADER)


def page(small, picture=None):
    return write_page(tables(small), "results.csv", picture)


def test_before_any_cell_every_system_reads_not_run(small):
    text = page(small)
    assert "![" not in text
    assert "|good|the good one|not run|" in text
    assert "- no result: bad, seed 2: not run\n" in text
    assert "|bad is worse|ASR error eng, bad minus good|-|not run|" in text
    assert "- **Not run** (1 of 1 claims).\n" in text
    assert "- cells ran on: `not run`" in text


def test_the_page_ends_with_command_commit_machine_seeds_and_progress(small):
    small.matrix().run("*/0")
    for path in small.root.glob("cells/*/record.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "seconds": 200}))
    end = page(small).partition("## How it was measured")[2]
    for line in (
        "- command: `python -m it`",
        "- commit: `abc`",
        "- machine: `a box`",
        "- seeds: `0 1 2`",
        "- cells done: `2 of 6`",
        # Of the cells together, however many ran at a time.
        "- cells took: `7 min in all`",
    ):
        assert line in end


def test_commits_of_cells_stand_behind_their_machine(small):
    small.matrix(commit="a" * 40, machine="a box").run("*/0")
    small.matrix(commit="b" * 40, machine="a box").run("*/1")
    small.matrix(commit="b" * 40, machine="another").run("*/2")
    ran = f"a box ({'a' * 12}, {'b' * 12}); another ({'b' * 12})"
    assert f"- cells ran on: `{ran}`\n" in page(small)


def test_a_system_without_cells_has_no_figures_beside_one_with(small):
    small.matrix().run("good/*")
    found = tables(small)
    assert found.figure("ASR error eng", "good").seeds == (0, 1, 2)
    assert found.figure("ASR error eng", "bad") is None
    text = page(small)
    assert "|good|the good one|3 of 3|" in text
    assert "|bad||not run|" in text


def test_values_differences_and_claims_are_those_of_the_cells(small):
    small.matrix().run()
    found = tables(small)
    good, bad = (found.figure("ASR error eng", name) for name in ("good", "bad"))
    # 10 errors more of 50 tokens in each of the utterances.
    assert bad.differences["good"].value == pytest.approx(20)
    assert bad.differences["good"].interval == pytest.approx((20, 20))
    (verdict,) = found.verdicts
    assert verdict.verdict == "holds"
    text = page(small)
    assert "- **Holds** (1 of 1 claims): bad is worse.\n" in text
    # 20 points worse in every seed; CKA is the same.
    low, high = bad.measure.interval
    assert (
        f"|bad|{bad.measure.value:.2f} ({low:.2f} to {high:.2f}); "
        "**+20.00 (+20.00 to +20.00)**|\n"
    ) in text
    assert "|ASR error, lower is better|eng (English)|" in text
    assert "|CKA to base|eng (English)|" in text
    assert "|bad|0.500 (0.500 to 0.500); +0.000 (+0.000 to +0.000)|" in text
    about, _, lines = read_csv(write(small, found))
    assert [*HEADER.items()] == about[:3]
    row = next(
        r for r in lines if (r["measure"], r["system"]) == ("ASR error eng", "bad")
    )
    wanted = {
        "mean": bad.measure.value,
        "deviation": bad.measure.deviation,
        "low": low,
        "high": high,
        "difference": bad.differences["good"].value,
        "p": bad.differences["good"].p,
    }
    assert {key: float(row[key]) for key in wanted} == wanted
    assert row["reference"] == "good"
    assert good.measure.value == pytest.approx(bad.measure.value - 20)


def write(small, found):
    path = small.recipe / "again.csv"
    path.write_text(found.as_csv(), encoding="utf-8")
    return path


@pytest.mark.parametrize("cells", ["*", "*/0", "good/*", "none"])
def test_a_page_from_the_csv_is_the_page_from_the_cells(small, cells):
    small.broken["bad", 1] = RuntimeError("out of luck")
    small.change("baseline: good", "baseline: base")
    small.change("  bad:", "  base:\n    bad:")
    small.change("claims:", "transfer: {base: eng, good: yue, bad: cmn}\nclaims:")
    small.change("system: bad,", "system: bad, than: good,")
    if cells != "none":
        small.matrix().run(cells)
    found = tables(small)
    again = Tables.of_csv(found.definition, write(small, found))
    assert again.as_csv() == found.as_csv()
    assert write_page(again, "results.csv") == page(small)
    if cells == "*":
        assert again.verdicts[0].difference == found.verdicts[0].difference


def test_what_claims_ask_of_two_others_is_in_the_csv(small):
    small.change("baseline: good", "baseline: base")
    small.change("  bad:", "  base:\n    bad:")
    small.change("system: bad,", "system: bad, than: good,")
    small.matrix().run()
    lines = read_csv(write(small, tables(small))).rows
    pairs = [(r["measure"], r["system"], r["reference"]) for r in lines]
    assert ("ASR error eng", "bad", "good") in pairs
    assert ("CKA to base eng", "bad", "good") not in pairs


@pytest.mark.parametrize("seed", range(5))
def test_a_difference_the_other_way_round_is_that_of_the_two_exchanged(seed):
    rng = np.random.default_rng(seed)
    one, other = (
        {
            s: [
                rate(
                    "ASR error",
                    "eng",
                    {f"u{i}": (int(rng.integers(0, 9)), 10) for i in range(6)},
                )
            ]
            for s in range(3)
        }
        for _ in range(2)
    )
    found, wanted = compare(one, other).reversed(), compare(other, one)
    for key in ("value", "interval", "p", "effect", "p_seeds"):
        assert getattr(found, key) == pytest.approx(getattr(wanted, key))
    assert found.seeds == wanted.seeds


def test_no_difference_is_plus_0_from_either_side():
    assert f"{Difference(0.0, (0.0, 0.0)).reversed().value:+.2f}" == "+0.00"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("label", "unit", "layer", "router"),
    [
        ("", "", None, ""),
        ("eng", "", None, ""),
        ("yue fleurs", "jyutping", None, ""),
        ("", "first tag", None, ""),
        ("", "", 11, ""),
        ("", "", 3, "output_dense"),
    ],
)
def test_a_measures_name_is_read_back(kind, label, unit, layer, router):
    name = Name(kind, label, unit, layer, router)
    assert Name.parse(str(name)) == name
    measure = CellMeasure(kind, 1.0, name.lang, label, unit, layer=layer, router=router)
    assert measure.name == str(name)


def test_a_csv_of_something_else_is_refused(small):
    path = small.recipe / "other.csv"
    path.write_text("system,value\ngood,1\n")
    with pytest.raises(RecipeError, match=r"other\.csv: column 'measure' not found"):
        Tables.of_csv(small.matrix().definition, path)
    path.write_text(tables(small).as_csv() + "speed eng,,,good,0" + "," * 12 + "\n")
    with pytest.raises(RecipeError, match="'speed eng': expected a name that begins"):
        Tables.of_csv(small.matrix().definition, path)


def test_failed_cells_are_listed_with_reason_and_log(small):
    small.broken["bad", 1] = RuntimeError("out of luck")
    small.matrix().run()
    text = page(small)
    assert "- no result: bad, seed 1: failed: RuntimeError: out of luck: log " in text
    assert "|bad||2 of 3|" in text


def test_means_of_different_seeds_are_not_offered_for_comparison(small):
    small.matrix().run("*/0")
    assert "by the differences" not in page(small)
    assert "One seed with 95 % intervals" in page(small)
    small.matrix().run("good/*")
    assert "compare them by the differences" in page(small)


def test_one_seed_has_intervals_and_tells_nothing(small):
    small.matrix().run("*/0")
    text = page(small)
    assert "; +20.00 (+20.00 to +20.00)|" in text
    assert "- **Cannot be told (one seed)** (1 of 1 claims)." in text


def test_the_picture_beside_the_page_is_shown(small):
    small.matrix().run()
    assert "![Differences to good](small.png)\n" in page(small, "small.png")


def test_many_languages_make_several_tables(small, monkeypatch):
    small.matrix().run("*/0")
    for path in small.root.glob("cells/*/record.json"):
        record = json.loads(path.read_text())
        record["measures"] = [
            CellMeasure("CKA to base", 0.5, f"qa{c}").as_dict() for c in "abcdefg"
        ]
        path.write_text(json.dumps(record))
    lines = [line for line in page(small).splitlines() if "CKA to base|" in line]
    assert lines == [
        "|CKA to base|qaa|qab|qac|qad|qae|",
        "|CKA to base|qaf|qag|",
    ]


def test_ways_to_identify_have_a_table_each(small):
    small.matrix().run("*/0")
    units = "first tag", "most probable tag"
    measures = [
        rate("LID accuracy", lang, {"a": (1, 2), "b": (2, 2)}, unit)
        for lang in ("", "cmn", "eng")
        for unit in units
    ]
    for path in small.root.glob("cells/*/record.json"):
        record = json.loads(path.read_text())
        record["measures"] = [m.as_dict() for m in measures]
        path.write_text(json.dumps(record))
    text = page(small)
    for unit in units:
        columns = ("average", "all", "cmn (Mandarin Chinese)", "eng (English)")
        head = "|".join(f"{column}, {unit}" for column in columns)
        assert f"|LID accuracy, higher is better|{head}|\n" in text


def test_intervals_of_the_page_end_where_no_accuracy_can_be(small):
    matrix = small.matrix()
    matrix.run()
    for cell in matrix.cells:
        path = matrix.store.cell(cell.key) / "record.json"
        record = json.loads(path.read_text())
        right = (10, 4, 10)[cell.seed]
        measure = rate("LID accuracy", "eng", {f"u{i}": (right, 10) for i in range(5)})
        record["measures"] = [measure.as_dict()]
        path.write_text(json.dumps(record))
    found = tables(small)
    low, high = found.figure("LID accuracy eng", "good").measure.interval
    assert low < 80 < 100 < high
    assert f"|good|80.00 ({max(low, 0):.2f} to 100.00)|" in page(small)
    assert float(read_csv(write(small, found))[2][0]["high"]) == high


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
    backward = entry["backward"]
    assert backward == found.difference("ASR error eng", "bad", "good")
    steps = entry["steps"]
    assert backward.value == pytest.approx(steps["bad"] - steps["good"])
    text = page(small)
    assert "|measure|good (eng)|bad (yue)|backward transfer|" in text
    low, high = backward.interval
    assert f"|{backward.value:+.2f} ({low:+.2f} to {high:+.2f}), p " in text


def test_what_the_last_step_learnt_has_no_backward_transfer(small):
    small.change("claims:", "transfer: {good: yue, bad: eng}\nclaims:")
    small.matrix().run()
    assert tables(small).transfer()["ASR error eng"]["backward"] is None
