"""RESULTS.md, results.json and results.csv say the same, with all that qualifies it."""

import csv
import json

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.bootstrap import mcnemar_exact, paired_bootstrap
from espnet2_lamer.evaluation.measure import Measure
from espnet2_lamer.evaluation.results import MeasureTable, Results
from espnet2_lamer.evaluation.scoring import Counts, LidScore, Score
from espnet2_lamer.evaluation.tables import describe_environment, write_results

UTTS = [f"u{i:02d}" for i in range(40)]


def score(errors_per_utt, unit="pinyin"):
    counts = {u: Counts(errors_per_utt, 0, 0, 20 - errors_per_utt) for u in UTTS}
    rate = 5.0 * errors_per_utt
    return Score(unit, counts, (rate, rate))


def lid(right):
    correct = {u: i < right for i, u in enumerate(UTTS)}
    confusion = {"cmn": {"cmn": right, "yue": 40 - right - 1, "UNK": 1}}
    return LidScore(correct, confusion, (90.0, 99.5))


@pytest.fixture
def results():
    masked = {
        "Lamer": Measure.of_rate({u: (5, 10) for u in UTTS}),
        "head-only control": Measure.of_rate({u: (4, 10) for u in UTTS}),
    }
    return Results(
        systems={"random": "same network, random weights", "base": "B", "lamer": "L"},
        baselines=["random", "base"],
        recognition={
            "lamer": {"cmn": score(4)},
            "random": {"cmn": score(16), "eng": score(10, "char")},
            "base": {"cmn": score(6)},
        },
        identification={"random": {"cmn+yue": lid(20)}, "lamer": {"cmn+yue": lid(39)}},
        tables=[
            MeasureTable(
                title="Masked accuracy on new units",
                measure="masked accuracy (%)",
                rows={"cmn": masked},
                reference="head-only control",
                note="The control trains the same head only.",
            )
        ],
        parameters={"lamer": {"total": 2345678, "trainable_percent_of_total": 4.5678}},
        environment={"date": "d", "python version": "3.11.9"},
        notes=["synthetic formant speech"],
    )


@pytest.fixture
def written(results, tmp_path):
    write_results(tmp_path, results)
    return tmp_path


def row(text, *start):
    return next(
        line.strip("|").split("|")
        for line in text.splitlines()
        if line.startswith("|" + "|".join(start) + "|")
    )


def test_results_md_starts_as_espnets(written):
    lines = (written / "RESULTS.md").read_text().splitlines()
    assert lines[:6] == [
        "# RESULTS",
        "",
        "## Environments",
        "",
        "- date: `d`",
        "- python version: `3.11.9`",
    ]


def test_each_system_has_espnets_error_table(written):
    text = (written / "RESULTS.md").read_text()
    section = text[text.index("\n## lamer\n") :]
    assert "|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|" in section
    assert "### TER (unit: pinyin)" in section
    assert row(section, "cmn") == [
        *["cmn", "40", "800", "80.0", "20.0", "0.0", "0.0", "20.0", "100.0"]
    ]


def test_summary_has_unit_counts_interval_and_p_of_every_error_rate(written):
    text = (written / "RESULTS.md").read_text()
    assert row(text, "cmn", "pinyin", "lamer") == [
        *["cmn", "pinyin", "lamer", "40", "800", "20.00", "20.00 to 20.00"],
        *["-60.00 (p < 0.001)", "-10.00 (p < 0.001)"],
    ]
    assert row(text, "cmn", "pinyin", "random")[-2:] == ["-", "+50.00 (p < 0.001)"]
    assert row(text, "eng", "char", "random")[-2:] == ["-", "-"]


def test_systems_stand_in_their_order_within_a_test_set(written):
    text = (written / "RESULTS.md").read_text()
    starts = [
        text.index(f"|cmn|pinyin|{name}|") for name in ("random", "base", "lamer")
    ]
    assert starts == sorted(starts)


def test_lid_row_has_mcnemars_p_and_the_confusion_matrix_stands_below(written):
    text = (written / "RESULTS.md").read_text()
    assert row(text, "cmn+yue", "lamer") == [
        *[
            "cmn+yue",
            "lamer",
            "40",
            "100.00",
            "97.50",
            "90.00 to 99.50",
            "+47.50 (p < 0.001)",
        ]
    ]
    assert "|true \\ found|cmn|UNK|yue|" in text
    assert "|cmn|39|1|0|" in text


def test_further_tables_parameters_and_notes_are_written(written):
    text = (written / "RESULTS.md").read_text()
    assert "### Masked accuracy on new units\n\nThe control trains" in text
    assert row(text, "cmn", "Lamer")[-1] == "+10.00 (p < 0.001)"
    assert "|total|2,345,678|" in text
    assert "|trainable percent of total|4.57|" in text
    assert "- Note: synthetic formant speech" in text


def test_json_and_csv_hold_the_same_exact_figures(written, results):
    figures = json.loads((written / "results.json").read_text())["figures"]
    with open(written / "results.csv", encoding="utf-8") as handle:
        lines = list(csv.DictReader(handle))
    flat = [
        (f["table"], f["label"], f["system"], f["value"], c["reference"], c["p"])
        for f in figures
        for c in f["comparisons"]
    ]
    assert flat == [
        *(
            (n["table"], n["label"], n["system"], float(n["value"]))
            + (n["reference"], float(n["p"]))
            for n in lines
            if n["reference"]
        )
    ]
    by_key = {(f["label"], f["system"]): f for f in figures}
    versus = {c["reference"]: c for c in by_key["cmn", "lamer"]["comparisons"]}
    expected = paired_bootstrap([4] * 40, [16] * 40, [20] * 40)
    assert versus["random"]["p"] == expected.p_two_sided
    assert versus["random"]["test"] == "paired bootstrap"
    (lid_test,) = by_key["cmn+yue", "lamer"]["comparisons"]
    rights = ([i < 39 for i in range(40)], [i < 20 for i in range(40)])
    assert lid_test["p"] == mcnemar_exact(*rights)
    assert lid_test["test"] == "McNemar"


def test_the_same_results_give_the_same_bytes(results, tmp_path):
    for name in ("one", "two"):
        write_results(tmp_path / name, results)
    for name in ("RESULTS.md", "results.json", "results.csv"):
        one, two = (tmp_path / d / name for d in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baselines": ["hubert"]}, "'hubert' is not described"),
        ({"recognition": {"other": {}}}, "'other' is not described"),
        (
            {
                "recognition": {
                    "base": {"x": score(1)},
                    "lamer": {"x": score(1, "char")},
                }
            },
            "units char, pinyin",
        ),
        (
            {
                "recognition": {
                    "random": {"x": score(1)},
                    "lamer": {"x": Score("pinyin", {"v": Counts(1, 0, 0, 1)}, (0, 1))},
                }
            },
            "not over the same utterances",
        ),
    ],
)
def test_results_that_do_not_compare_are_refused_and_nothing_is_written(
    results, tmp_path, change, message
):
    for key, value in change.items():
        setattr(results, key, value)
    with pytest.raises(RecipeError, match=message):
        write_results(tmp_path / "new", results)
    assert not (tmp_path / "new").exists()


def test_environment_names_versions_and_leaves_git_out_outside_a_checkout(tmp_path):
    environment = describe_environment(tmp_path)
    assert list(environment)[:4] == [
        "date",
        "python version",
        "espnet version",
        "pytorch version",
    ]
    assert "Git hash" not in environment
