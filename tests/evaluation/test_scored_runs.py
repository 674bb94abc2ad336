"""Decoded runs become tables: tasks, seeds, languages, the official averages."""

import dataclasses

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.mlsuperb import MONOLINGUAL
from espnet2_lamer.evaluation.results import Results, Task, collect_figures
from espnet2_lamer.evaluation.scored_runs import (
    METRICS,
    PUBLISHED,
    describe_head,
    fill_results,
    language_table,
    score_run,
    superb_score,
    superb_table,
)
from espnet2_lamer.evaluation.text_units import OFFICIAL_UNITS
from tests.evaluation.decoded_runs import decoded_run


@pytest.fixture
def scored(tmp_path):
    """Score runs that are described as for ``decoded_run``."""

    def score(sets, hypotheses, **fields):
        run = decoded_run(
            tmp_path / "exp", tmp_path / "raw", sets, hypotheses, **fields
        )
        return score_run(run, tmp_path / "exp", tmp_path / "raw")

    return score


def free(texts):
    return {"free": texts}


def test_a_monolingual_run_is_one_task_with_unit_training_speech_and_head(scored):
    sets = {"eng": {"u1": ("eng", "AB C"), "u2": ("eng", "AB")}}
    tests = scored(
        sets,
        free({"u1": "AB", "u2": "AB"}),
        corpus="commonvoice",
        budget="1h",
        layer="all",
        learning_rate=1e-3,
    )
    results = Results({"base": "B"})
    fill_results(results, tests)
    task = Task("asr", "eng", "char", "commonvoice 1h")
    assert list(results.recognition) == [task]
    assert results.recognition[task]["base"][0].total.errors == 2
    assert not results.identification
    assert results.heads[task, "base"] == "weighted sum, lr 0.001"


def test_lid_is_scored_by_both_decisions_and_names_the_reading(scored):
    sets = {"all": {"a": ("eng", "[eng]"), "b": ("cmn", "[cmn]")}}
    tests = scored(
        sets,
        {
            "most_probable_tag": {"a": "[eng]", "b": "[cmn]"},
            "first_tag": {"a": "[eng]", "b": ""},
        },
        track="lid",
        unit="lang",
        langs=("eng", "cmn"),
        budget="1h",
        lid_reading="per_set",
        benchmark="paper",
    )
    results = Results({"base": "B"})
    fill_results(results, tests)
    found = {
        (t.unit, t.train): row["base"][0].accuracy
        for t, row in results.identification.items()
        if not t.part
    }
    assert found == {
        ("most probable tag", "1h per_set"): 100.0,
        ("first tag", "1h per_set"): 50.0,
    }
    parts = {t.part for t in results.identification}
    assert parts == {"", "eng", "cmn"}


def test_joint_runs_score_text_without_tags_and_the_first_tag(scored):
    sets = {"all": {"a": ("eng", "[eng] AB"), "b": ("cmn", "[cmn] X")}}
    tests = scored(
        sets, free({"a": "[cmn] AB", "b": "[cmn] Y"}), track="asr_lid", langs=("eng",)
    )
    results = Results({"base": "B"})
    fill_results(results, tests)
    (text,) = [t for t in results.recognition if not t.part]
    (tag,) = [t for t in results.identification if not t.part]
    # The space behind the tag is a token, as in ESPnet: 3 + 2 tokens, one wrong.
    score = results.recognition[text]["base"][0]
    assert (score.total.errors, score.total.ref_length) == (1, 5)
    assert results.identification[tag]["base"][0].accuracy == 50.0
    assert (text.unit, tag.unit) == ("char", "first tag")


def test_bpe_says_that_it_is_scored_in_characters(scored):
    (test,) = scored({"eng": {"u": ("eng", "AB")}}, free({"u": "AB"}), unit="bpe")
    assert test.task.unit == "bpe (scored in characters)"


def test_seeds_of_a_head_become_one_figure(scored):
    sets = {"eng": {f"u{i}": ("eng", "ABCD") for i in range(9)}}
    tests = []
    for seed, wrong in ((0, "XBCD"), (1, "XXCD")):
        tests += scored(sets, free(dict.fromkeys(sets["eng"], wrong)), seed=seed)
    results = Results({"base": "B"})
    fill_results(results, tests)
    (figure,) = collect_figures(results)
    assert figure.measure.value == pytest.approx(37.5)
    # 25 and 50 per cent: sample standard deviation 25 / sqrt(2).
    assert figure.measure.deviation == pytest.approx(25 / 2**0.5)
    assert figure.trainings == {0: 25.0, 1: 50.0}


def test_monolingual_heads_are_summarised_over_languages_with_their_units(scored):
    tests = []
    for lang, unit, hypothesis in (
        ("eng", "char", "AB"),
        ("cmn", "pinyin", "A X"),
        ("yue", "jyutping", "X X"),
    ):
        reference = "A B" if unit != "char" else "AB"
        tests += scored(
            {lang: {f"{lang}1": (lang, reference)}},
            free({f"{lang}1": hypothesis}),
            langs=(lang,),
            unit=unit,
        )
    table = language_table(tests, [])
    found = {label: row["base"] for label, row in table.rows.items()}
    name = "asr all speech: error rate, "
    # 0, 50 and 100 per cent.
    assert found[name + "mean over languages"].value == pytest.approx(50.0)
    assert found[name + "deviation over languages"].value == pytest.approx(50.0)
    worst = found[name + "worst language"]
    assert (worst.value, worst.note) == (100.0, "yue")
    assert set(table.units.values()) == {"cmn pinyin, eng char, yue jyutping"}


def test_one_language_has_nothing_to_summarise(scored):
    tests = scored({"eng": {"u": ("eng", "AB")}}, free({"u": "AB"}))
    assert language_table(tests, []) is None
    assert superb_table(tests) is None


def official_runs(scored, system, units=OFFICIAL_UNITS):
    """All tracks of the 1 h benchmark, three languages where they mix."""
    tests = []
    shared = {"benchmark": "mlsuperb", "budget": "1h", "system": system}
    # eng2 50 per cent, fra1 and fra2 100, all others none.
    wrong = {"eng2": "AX", "fra1": "XY", "fra2": "XY"}
    for name, (lang, corpus) in MONOLINGUAL.items():
        utt = f"{corpus}_{lang}_1"
        tests += scored(
            {name: {utt: (lang, "AB")}},
            free({utt: wrong.get(name, "AB")}),
            corpus=corpus,
            langs=(lang,),
            unit=units.get(lang, "char"),
            official_name=name,
            **shared,
        )
    many = {"a": ("eng", "ABCD"), "b": ("fra", "AB"), "c": ("dan", "AB")}
    said = {"a": "ABCD", "b": "XY", "c": "AX"}
    langs = ("eng", "fra", "dan")
    tests += scored({"all": many}, free(said), track="multi_asr", langs=langs, **shared)
    tags = {u: (lang, f"[{lang}]") for u, (lang, _) in many.items()}
    found = {"a": "[eng]", "b": "[eng]", "c": "[dan]"}
    tests += scored(
        {"all": tags},
        {"first_tag": found, "most_probable_tag": {u: "[dan]" for u in tags}},
        track="lid",
        unit="lang",
        langs=langs,
        **shared,
    )
    joint = {u: (lang, f"[{lang}] {text}") for u, (lang, text) in many.items()}
    heard = {u: f"[eng] {said[u]}" for u in many}
    tests += scored({"all": joint}, free(heard), track="asr_lid", langs=langs, **shared)
    return tests


def test_the_official_averages_and_score_are_computed_when_all_tracks_are_there(scored):
    tests = official_runs(scored, "lamer")
    table = superb_table(tests)
    values = {label: row["lamer"].value for label, row in table.rows.items()}
    expected = {
        # Within eng (three corpora) and fra (two), then over nine languages.
        "mono CER": (50 / 3 + 100) / 9,
        "multi CER": 100 * 2 / 6,
        "multi few-shot CER": 50.0,
        "LID accuracy": 50.0,
        "joint accuracy": 50.0,
        "joint CER": 100 * 2 / 8,  # a space behind each tag
        "joint few-shot CER": 100 / 3,
    }
    assert list(expected) == list(METRICS)
    for name, value in expected.items():
        assert values[f"1h: {name}"] == pytest.approx(value), name
    pool = {**PUBLISHED["1h"], "lamer": expected}
    assert values["1h: SUPERB score"] == pytest.approx(superb_score(expected, pool))


def test_the_score_is_withheld_where_units_or_texts_are_others(scored):
    tests = official_runs(scored, "lamer", {"cmn": "pinyin"})
    table = superb_table(tests)
    assert "1h: SUPERB score" not in table.rows and "1h: multi CER" in table.rows
    assert "withheld" in table.note
    assert "jpn counts char, phone there (--units jpn=phone)" in table.note
    assert "cmn" not in table.note
    tests = [
        dataclasses.replace(test, normalisation="unicode")
        for test in official_runs(scored, "lamer")
    ]
    table = superb_table(tests)
    assert "1h: SUPERB score" not in table.rows
    assert "text normalisation unicode" in table.note


def test_official_averages_count_as_sclite_does(scored):
    tests = official_runs(scored, "lamer")
    # 5 substitutions or 6 insertions and deletions: sclite prefers the latter.
    (other,) = scored(
        {"swe": {"NST_swe_1": ("swe", "ABCDE")}},
        free({"NST_swe_1": "XYZAB"}),
        corpus="NST",
        langs=("swe",),
        benchmark="mlsuperb",
        budget="1h",
        system="lamer",
    )
    tests = [other if test.task.test == "swe" else test for test in tests]
    value = superb_table(tests).rows["1h: mono CER"]["lamer"].value
    assert value == pytest.approx((50 / 3 + 100 + 120) / 9)


def test_without_all_tracks_there_is_no_superb_score(scored):
    tests = [t for t in official_runs(scored, "lamer") if t.run.track != "asr_lid"]
    assert superb_table(tests) is None
    every = official_runs(scored, "base")
    assert superb_table([t for t in every if t.task.test != "xty"]) is None


def test_trained_and_few_shot_languages_are_tasks_of_the_official_benchmark(scored):
    results = Results({"lamer": "L"})
    fill_results(results, official_runs(scored, "lamer"))
    parts = {t.part for t in results.recognition if t.track == "multi_asr"}
    groups = {"trained languages", "few-shot languages"}
    assert parts == {"", "eng", "fra", "dan", *groups}


def test_missing_hypotheses_and_empty_references_are_named(scored, tmp_path):
    sets = {"eng": {"u1": ("eng", "AB"), "u2": ("eng", "")}}
    with pytest.raises(RecipeError, match="utterance 'u2' has an empty reference"):
        scored(sets, free({"u1": "AB", "u2": "A"}))
    with pytest.raises(RecipeError, match="free/1best_recog/text: file not found"):
        scored({"eng": {"u1": ("eng", "AB")}}, {}, system="other")


def test_a_head_on_one_layer_says_which(scored):
    (test,) = scored({"eng": {"u": ("eng", "A")}}, free({"u": "A"}), layer=22)
    assert describe_head(test.run) == "layer 22"
