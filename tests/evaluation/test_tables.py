"""RESULTS.md, results.json and results.csv say the same, with all that qualifies it."""

import csv
import json

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.changes import Question
from espnet2_lamer.evaluation.results import (
    MeasureTable,
    Results,
    Task,
    describe_environment,
    write_results,
)
from espnet2_lamer.evaluation.scoring import Counts, LidScore, Score
from espnet2_lamer.evaluation.spread import Spread
from espnet2_lamer.metrics.bootstrap import (
    mcnemar_exact,
    paired_bootstrap,
    wilson_interval,
)
from espnet2_lamer.metrics.measure import Measure

UTTS = [f"u{i:02d}" for i in range(40)]
CMN = Task("asr", "cmn", "pinyin", "1h")
ENG = Task("asr", "eng", "char", "1h")
LID = Task("lid", "cmn+yue", "first tag", "1h total")


def score(errors_per_utt, utts=UTTS):
    counts = {u: Counts(errors_per_utt, 0, 0, 20 - errors_per_utt) for u in utts}
    # One error more in sclite's alignment: the two must not be mixed up.
    sclite = {u: Counts(0, 2, 2, 18) for u in utts}
    return {0: Score(counts, sclite)}


def lid(right):
    found = {u: "cmn" if i < right else "yue" for i, u in enumerate(UTTS)}
    found[UTTS[-1]] = "UNK"
    return {0: LidScore(dict.fromkeys(UTTS, "cmn"), found)}


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
            CMN: {"lamer": score(4), "random": score(16), "base": score(6)},
            ENG: {"random": score(10)},
        },
        identification={LID: {"lamer": lid(39), "random": lid(20)}},
        heads={(CMN, "lamer"): "layer 22"},
        tables=[
            MeasureTable(
                title="Masked accuracy on new units",
                measure="masked accuracy (%)",
                rows={"cmn": masked},
                references=["head-only control"],
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


def test_results_md_ends_with_the_lines_of_espnets_environment(written):
    text = (written / "RESULTS.md").read_text()
    assert text.startswith("# RESULTS\n")
    assert text.endswith(
        "\n## Environments\n\n- date: `d`\n- python version: `3.11.9`\n"
    )


def test_each_system_has_espnets_error_table(written):
    text = (written / "RESULTS.md").read_text()
    section = text[text.index("\n## lamer\n") :]
    assert "|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|" in section
    assert "### TER (unit: pinyin)" in section
    dataset = "cmn trained on 1h"
    cells = "40|800|90.0|0.0|10.0|10.0|20.0|100.0".split("|")
    assert row(section, dataset) == [dataset, *cells]
    # The edit distance is another figure.
    assert "20.0 (20.0 to 20.0)" in row(text, "cmn, pinyin, 40 utt.")


def test_tables_name_languages_where_names_are_known(results, tmp_path):
    results.names = {"cmn": "cmn (Mandarin Chinese)"}
    write_results(tmp_path, results)
    text = (tmp_path / "RESULTS.md").read_text()
    assert row(text, "cmn (Mandarin Chinese), pinyin, 40 utt.")
    assert row(text, "cmn (Mandarin Chinese), 40 utt.")
    rows = csv.DictReader((tmp_path / "results.csv").open())
    assert {r["label"] for r in rows} >= {"cmn", "eng"}


def test_beside_a_difference_stands_how_far_runs_lie_apart(results, tmp_path):
    spread = Spread({("recognition", "cmn"): 3.04}, {"spread.csv": 5})
    asked = Question("lamer", ("base",), ("cmn",), (), {CMN: "cmn"}, spread=spread)
    results.question = asked
    write_results(tmp_path, results)
    cells = row((tmp_path / "RESULTS.md").read_text(), "cmn, pinyin, 40 utt.")
    (versus,) = (cell for cell in cells if "±" in cell)
    assert ", runs ±3.0, p" in versus
    data = json.loads((tmp_path / "results.json").read_text())
    (change,) = data["changes"]
    assert abs(change["value"]) > 3.04 and change["spread"] == 3.04
    assert data["question"]["spread"] == {"spread.csv": 5}


def test_systems_stand_side_by_side_with_interval_and_difference(written):
    text = (written / "RESULTS.md").read_text()
    header = "error rate (%) by test set", "random", "base", "lamer", "lamer - base"
    header += ("sclite",)
    assert row(text, *header) == [*header]
    assert row(text, "cmn, pinyin, 40 utt.") == [
        "cmn, pinyin, 40 utt.",
        "80.0 (80.0 to 80.0)",
        "30.0 (30.0 to 30.0)",
        "20.0 (20.0 to 20.0)",
        "-10.00 (-10.00 to -10.00), p < 0.001",
        # Beside the headline, in the order of the systems.
        "20.0 / 20.0 / 20.0",
    ]
    assert row(text, "eng, char, 40 utt.")[2:] == ["-", "-", "-", "20.0 / - / -"]
    assert "Trained on 1h. Heads read layer 22." in text


def test_no_table_of_results_is_wider_than_six_columns(results, tmp_path):
    names = [f"system{k}" for k in range(8)]
    results.systems = dict.fromkeys(["random", "base", *names], "one of many")
    row_of = {name: score(4) for name in results.systems}
    results.recognition = {CMN: row_of, ENG: row_of}
    results.identification = {LID: {name: lid(30) for name in results.systems}}
    results.parameters = {name: {"total": 1} for name in names}
    write_results(tmp_path, results)
    tables = (tmp_path / "RESULTS.md").read_text()
    tables = tables[tables.index("## Tables") : tables.index("\n## random\n")]
    widths = {line.count("|") - 1 for line in tables.splitlines() if line[:1] == "|"}
    assert 1 < min(widths) and max(widths) <= 6
    # Each of the many has its row.
    found = row(tables, "cmn, pinyin, 40 utt.", "system3")
    assert found[2:] == [
        "20.0 (20.0 to 20.0)",
        *["+0.00 (+0.00 to +0.00), p 1.000"] * 2,
        "20.0",
    ]


def test_lid_has_wilsons_interval_and_the_confusion_matrix_stands_below(written):
    text = (written / "RESULTS.md").read_text()
    low, high = (100 * bound for bound in wilson_interval(39, 40))
    assert "Unit: first tag." in text
    assert row(text, "cmn+yue, 40 utt.")[-1] == f"97.5 ({low:.1f} to {high:.1f})"
    assert "|true \\ found|cmn|UNK|" in text
    assert "|cmn|39|1|" in text


def test_further_tables_parameters_and_notes_are_written(written):
    text = (written / "RESULTS.md").read_text()
    assert "### Masked accuracy on new units\n\nThe control trains" in text
    difference = "+10.00 (+10.00 to +10.00), p < 0.001"
    assert row(text, "cmn, 40 utt.")[1:] == [
        *("50.0 (50.0 to 50.0)", "40.0 (40.0 to 40.0)", difference)
    ]
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
    assert versus["random"]["p"] == expected.p
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
        ({"recognition": {CMN: {"other": {}}}}, "'other' is not described"),
        (
            {"recognition": {CMN: {"random": score(1), "lamer": score(1, utts=["v"])}}},
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


def test_several_seeds_show_their_mean_and_deviation(results, tmp_path):
    two = {seed: score(errors)[0] for seed, errors in ((0, 4), (1, 6))}
    results.recognition = {CMN: {"lamer": two, "base": score(6)}}
    write_results(tmp_path, results)
    text = (tmp_path / "RESULTS.md").read_text()
    # Rates 20 and 30: mean 25, sample standard deviation 10 / sqrt(2).
    cells = row(text, "cmn, 40 utt.")
    assert cells[1:3] == [
        "30.0 (30.0 to 30.0)",
        "25.0 (25.0 to 25.0; sd 7.1, 2 seeds)",
    ]
    assert "cmn trained on 1h seed 1" in text and "mean" in text
    figures = json.loads((tmp_path / "results.json").read_text())["figures"]
    assert figures[1]["trainings"] == {"0": 20.0, "1": 30.0}
    assert figures[1]["deviation"] == pytest.approx(50**0.5)


def test_lid_over_seeds_is_tested_by_paired_bootstrap(results, tmp_path):
    both = {0: lid(39)[0], 1: lid(35)[0]}
    results.identification = {LID: {"lamer": both, "random": lid(20)}}
    write_results(tmp_path, results)
    figures = json.loads((tmp_path / "results.json").read_text())["figures"]
    lamer = [f for f in figures if f["measure"] == "accuracy" and f["seeds"] == 2]
    assert lamer[0]["comparisons"][0]["test"] == "paired bootstrap"


def test_many_languages_of_a_test_set_stand_in_the_data_files_alone(results, tmp_path):
    langs = [f"{a}{b}x" for a in "abcd" for b in "abcd"]
    tasks = [Task("multi_asr", "all", "char", "1h", part) for part in ("", *langs)]
    group = Task("multi_asr", "all", "char", "1h", "trained languages", True)
    results.recognition = {t: {"base": score(2)} for t in (*tasks, group)}
    write_results(tmp_path, results)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "|all: aax" not in text and "16 parts of the test sets" not in text
    assert "17 parts of the test sets are in results.csv." in text
    assert "|all: trained languages, 40 utt.|" in text
    assert "all: aax" in (tmp_path / "results.csv").read_text()


def test_every_row_of_the_heads_names_its_unit_and_training_speech(written):
    figures = json.loads((written / "results.json").read_text())["figures"]
    heads = [f for f in figures if f["track"]]
    assert len(heads) == 6
    assert all(f["unit"] and f["train"] for f in heads)
