"""Which heads the options ask for: tracks, budgets, sets, directories."""

from pathlib import Path

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.runs import Run
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.recipe.benchmark import planned_runs, planned_sets
from espnet2_lamer.recipe.command import read_options
from espnet2_lamer.recipe.declaration import as_text
from espnet2_lamer.recipe.stages import ssl1
from tests.recipe.evaluation_options import CONF

TRACKS = ["asr", "multi_asr", "lid", "asr_lid"]


def test_the_paper_has_a_model_per_language_and_corpus_and_one_mixture(make):
    options = make(upstreams=["lamer"])
    runs = {run.name: run for run in planned_runs(options)}
    assert sorted(runs) == [
        "asr_commonvoice_cmn_1h_pinyin_lamer_layer22",
        "asr_commonvoice_eng_1h_char_lamer_layer22",
        "asr_commonvoice_yue_1h_jyutping_lamer_layer22",
        "asr_fleurs_cmn_1h_pinyin_lamer_layer22",
        "asr_fleurs_eng_1h_char_lamer_layer22",
        "asr_fleurs_yue_1h_jyutping_lamer_layer22",
        "lid_paper_1h_per_set_lamer_layer21",
    ]
    head = runs["asr_fleurs_yue_1h_jyutping_lamer_layer22"]
    assert head.train_sets == ("paper_fleurs_yue_train_1h",)
    assert head.tests == {"yue_fleurs": ("paper_fleurs_yue_test",)}
    lid = runs["lid_paper_1h_per_set_lamer_layer21"]
    assert len(lid.train_sets) == len(lid.dev_sets) == len(lid.tests["test"]) == 6
    assert lid.unit == "lang"


def test_the_total_reading_shares_one_hour_and_shows_in_the_name(make):
    (lid,) = planned_runs(make(upstreams=["base"], tracks=["lid"], lid_reading="total"))
    assert lid.name == "lid_paper_1h_total_base_layer21"
    assert all(name.endswith("train_1h_total") for name in lid.train_sets)


def test_cross_corpus_testing_is_an_option(make):
    options = make(cross_corpus=True, upstreams=["base"], tracks=["asr"])
    for run in planned_runs(options):
        (lang,) = run.langs
        assert set(run.tests) == {f"{lang}_commonvoice", f"{lang}_fleurs"}


def test_no_two_runs_of_any_options_share_a_directory(make):
    names = []
    for benchmark, budgets in (("own", ["all", "10min"]), ("paper", ["10min", "1h"])):
        for reading in ("per_set", "total"):
            for layer in (22, "all"):
                for unit in ("char", "bpe"):
                    for seed in (0, 1):
                        options = make(
                            benchmark=benchmark,
                            budgets=budgets,
                            tracks=TRACKS,
                            lid_reading=reading,
                            asr_layer=layer,
                            lid_layer=layer,
                            multi_unit=unit,
                            seed=seed,
                        )
                        names += [(r.name, r) for r in planned_runs(options)]
    different = {name: run for name, run in names}
    assert all(different[name] == run for name, run in names)
    assert len(different) == len({run for _, run in names}) > 100


def test_a_budget_takes_its_own_config_where_there_is_one(make):
    options = make(budgets=["10min", "1h"], tracks=TRACKS, upstreams=["base"])
    found = {(r.track, r.budget): Path(r.config).name for r in planned_runs(options)}
    assert found == {
        ("asr", "10min"): "train_asr_mlsuperb.yaml",
        ("asr", "1h"): "train_asr_mlsuperb.yaml",
        ("multi_asr", "10min"): "train_multi_asr_mlsuperb_10min.yaml",
        ("multi_asr", "1h"): "train_multi_asr_mlsuperb.yaml",
        ("lid", "10min"): "train_lid_mlsuperb_10min.yaml",
        ("lid", "1h"): "train_lid_mlsuperb.yaml",
        ("asr_lid", "10min"): "train_multi_asr_mlsuperb_10min.yaml",
        ("asr_lid", "1h"): "train_multi_asr_mlsuperb.yaml",
    }


def test_planned_sets_are_those_of_all_tasks(make):
    sets = planned_sets(make(eval_langs=["yue"], tracks=["asr", "lid"]))
    assert sorted(sets) == [
        f"paper_{corpus}_yue_{part}"
        for corpus in ("commonvoice", "fleurs")
        for part in ("dev", "test", "train_1h")
    ]


def test_a_run_is_written_and_read_back(make, tmp_path):
    for run in planned_runs(make(tracks=TRACKS)):
        path = run.directory(tmp_path / "exp") / "run.json"
        write_json(path, run.as_dict())
        assert Run.read(path) == run
    path.write_text("{}")
    with pytest.raises(RecipeError, match="run.json: not a record of a run"):
        Run.read(path)
    with pytest.raises(RecipeError, match="written when a head is trained"):
        Run.read(tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmark": "superb"}, "--benchmark: found 'superb', expected one of own"),
        ({"tracks": ["asr", "sid"]}, "--tracks: found 'sid', expected some of asr"),
        ({"tracks": []}, "--tracks: found 'none', expected some of asr"),
        ({"budgets": ["2h"]}, "--budgets: found '2h', expected some of all"),
        ({"budgets": ["all"]}, "--budgets: found 'all', expected 10min or 1h"),
        ({"lid_reading": "both"}, "--lid_reading: found 'both'"),
        ({"multi_unit": "pinyin"}, "--multi_unit: found 'pinyin'"),
        ({"eval_langs": ["deu"]}, "--eval_langs: found 'deu', expected some of eng"),
        ({"eval_langs": ["all"]}, "--eval_langs: found 'all', expected language"),
        ({"nbpe": 0}, "--nbpe: found 0"),
        ({"eval_corpora": ["mls"]}, "--eval_corpora: found 'mls', expected different"),
        (
            {"eval_corpora": ["fleurs", "fleurs"]},
            "found fleurs fleurs, expected different ones of commonvoice, fleurs",
        ),
        (
            {"benchmark": "own", "eval_corpora": ["fleurs"]},
            "found 'fleurs', expected none with --benchmark own",
        ),
        ({"text_norm": "ascii"}, "--text_norm: found 'ascii', expected one of"),
        ({"upstream_mode": ["test"]}, "--upstream_mode: found 'test', expected some"),
        ({"upstream_mode": ["eval", "eval"]}, "--upstream_mode: found eval eval"),
        ({"feature_store_gb": -1.0}, "--feature_store_gb: found -1"),
    ],
)
def test_what_no_benchmark_knows_is_refused(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(CONF.parent / "egs2/lamer_ssl/ssl1")
    values = {"benchmark": "paper", "budgets": ["1h"], "expdir": tmp_path} | changes
    given = [f"--{name}={as_text(value)}" for name, value in values.items()]
    with pytest.raises(RecipeError, match=message):
        read_options(ssl1, given)
