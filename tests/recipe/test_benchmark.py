"""Which heads the options ask for: tracks, budgets, sets, upstreams, directories."""

import dataclasses
import functools
from pathlib import Path

import pytest
import torch
import yaml

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.runs import Run
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.recipe import benchmark as planning
from espnet2_lamer.recipe import upstreams
from espnet2_lamer.recipe.benchmark import (
    describe_systems,
    planned_runs,
    planned_sets,
    planned_tasks,
)
from espnet2_lamer.recipe.command import read_options
from espnet2_lamer.recipe.declaration import as_text
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.stages import ssl1
from espnet2_lamer.recipe.upstreams import upstream_specs
from tests.mlsuperb2_tree import utterances, write_folders

CONF = Path(__file__).parents[2] / "conf"
TRACKS = ["asr", "multi_asr", "lid", "asr_lid"]


def options_of(root, **changes):
    """Options of which only what decides about the evaluation is real."""
    values = {field.name: None for field in dataclasses.fields(Options)}
    values |= {
        "expdir": root / "exp",
        "datadir": root / "data",
        "dumpdir": root / "dump",
        "replay_langs": ["eng"],
        "new_langs": ["cmn", "yue"],
        "units": {"eng": "char", "cmn": "pinyin", "yue": "jyutping"},
        "base": "the/base",
        "ssl_tag": "lamer",
        "upstreams": ["base", "lamer"],
        "seed": 0,
        "benchmark": "paper",
        "budgets": ["1h"],
        "tracks": ["asr", "lid"],
        "eval_langs": [],
        "eval_corpora": [],
        "text_norm": "unicode",
        "upstream_mode": ["eval"],
        "cross_corpus": False,
        "tune": ["head"],
        "finetune_config": CONF / "train_asr_finetune.yaml",
        "use_ngram": False,
        "use_lm": False,
        "lm_train_text": {},
        "inference_config": CONF / "decode_asr_finetune.yaml",
        "lid_reading": "per_set",
        "multi_unit": "char",
        "nbpe": 200,
        "feature_store_gb": 50.0,
        "asr_layer": 22,
        "lid_layer": 21,
        "asr_config": CONF / "train_asr_mlsuperb.yaml",
        "multi_config": CONF / "train_multi_asr_mlsuperb.yaml",
        "lid_config": CONF / "train_lid_mlsuperb.yaml",
    }
    return Options(**values | changes)


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(upstreams, "CONFIGS", CONF / "upstreams")
    return functools.partial(options_of, tmp_path)


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


def tree_of(root, *pairs):
    for pair in pairs:
        (root / pair).mkdir(parents=True)
    return str(root)


def test_ml_superb_has_its_monolingual_tasks_and_tests_on_all_data_sets(
    make, tmp_path, monkeypatch
):
    tree = tree_of(
        tmp_path / "tree",
        *("mls/eng", "nchlt/eng", "fleurs/eng", "fleurs/cmn", "commonvoice/cmn"),
        *("fleurs/yue", "commonvoice/yue", "commonvoice/epo"),
    )
    monkeypatch.setenv("MLSUPERB", tree)
    options = make(benchmark="mlsuperb", upstreams=["base"], budgets=["10min"])
    tasks = {t.train_sets[0]: t for t in planned_tasks(options, ["asr"])}
    assert {name: task.tests for name, task in tasks.items()} == {
        "mlsuperb_mls_eng_train_10min": {
            "eng1": tuple(f"mlsuperb_{d}_eng_test" for d in ("fleurs", "mls", "nchlt"))
        },
        "mlsuperb_nchlt_eng_train_10min": {
            "eng2": tuple(f"mlsuperb_{d}_eng_test" for d in ("fleurs", "mls", "nchlt"))
        },
        "mlsuperb_fleurs_cmn_train_10min": {
            "cmn": ("mlsuperb_commonvoice_cmn_test", "mlsuperb_fleurs_cmn_test")
        },
        # Cantonese is in no official task: a model per data set.
        "mlsuperb_commonvoice_yue_train_10min": {
            "yue_commonvoice": (
                *("mlsuperb_commonvoice_yue_test", "mlsuperb_fleurs_yue_test"),
            )
        },
        "mlsuperb_fleurs_yue_train_10min": {
            "yue_fleurs": ("mlsuperb_commonvoice_yue_test", "mlsuperb_fleurs_yue_test")
        },
    }
    options = make(
        benchmark="mlsuperb",
        budgets=["1h"],
        eval_langs=["all"],
        upstreams=["base"],
        tracks=TRACKS,
    )
    multi = planned_runs(options, ["multi_asr"])[0]
    assert multi.name == "multi_asr_mlsuperb_1h_char_base_layer22"
    # Of the reserved language only the five utterances are trained on.
    assert "mlsuperb_commonvoice_epo_train_few_1h" in multi.train_sets
    assert "mlsuperb_commonvoice_epo_test" in multi.tests["test"]
    mono = {t.train_sets[0] for t in planned_tasks(options, ["asr"])}
    assert not [name for name in mono if "yue" in name or "epo" in name]


PAPERS = {
    "benchmark": "mlsuperb",
    "budgets": ["1h"],
    "eval_langs": ["eng", "cmn", "yue"],
    "eval_corpora": ["commonvoice", "fleurs"],
    "units": {},
    "upstreams": ["base"],
}


@pytest.fixture
def papers_tree(tmp_path, monkeypatch):
    """The paper's languages in more data sets than it has, and another language."""
    corpora = ("commonvoice", "fleurs", "mls", "voxpopuli")
    pairs = [f"{corpus}/{x}" for corpus in corpora for x in ("cmn", "eng", "yue")]
    tree = tree_of(tmp_path / "tree", *pairs, "fleurs/deu")
    monkeypatch.setenv("MLSUPERB", tree)


def test_chosen_corpora_of_ml_superb_are_the_papers_tasks(make, papers_tree):
    runs = {run.name: run for run in planned_runs(make(**PAPERS))}
    assert list(runs) == [
        "asr_mlsuperb_commonvoice_eng_1h_char_base_layer22",
        "asr_mlsuperb_commonvoice_cmn_1h_pinyin_base_layer22",
        "asr_mlsuperb_commonvoice_yue_1h_char_base_layer22",
        "asr_mlsuperb_fleurs_eng_1h_char_base_layer22",
        "asr_mlsuperb_fleurs_cmn_1h_pinyin_base_layer22",
        "asr_mlsuperb_fleurs_yue_1h_char_base_layer22",
        "lid_mlsuperb_commonvoice-fleurs_1h_per_set_base_layer21",
    ]
    for run in list(runs.values())[:-1]:
        (lang,) = run.langs
        name = f"mlsuperb_{run.corpus}_{lang}"
        assert (run.train_sets, run.dev_sets) == (
            (f"{name}_train_1h",),
            (f"{name}_dev",),
        )
        # Tests apart, where the official ones take all data sets of the language.
        assert run.tests == {f"{lang}_{run.corpus}": (f"{name}_test",)}
    lid = runs["lid_mlsuperb_commonvoice-fleurs_1h_per_set_base_layer21"]
    pairs = [f"{c}_{x}" for c in PAPERS["eval_corpora"] for x in PAPERS["eval_langs"]]
    assert lid.train_sets == tuple(f"mlsuperb_{pair}_train_1h" for pair in pairs)
    assert lid.tests == {"test": tuple(f"mlsuperb_{pair}_test" for pair in pairs)}
    options = make(**PAPERS, tracks=["lid"], lid_reading="total")
    (lid,) = planned_runs(options)
    assert lid.name == "lid_mlsuperb_commonvoice-fleurs_1h_total_base_layer21"
    assert lid.train_sets == tuple(f"mlsuperb_{p}_train_1h_total" for p in pairs)


def test_one_command_plans_seven_heads_for_every_system_of_table_1(make, papers_tree):
    systems = [f"mhubert_147_iter{n}" for n in (1, 2, 3)]
    systems += ["hubert_large", "hubert_lora", "lamer_ssl"]
    runs = planned_runs(make(**PAPERS | {"upstreams": systems}))
    assert len({run.name for run in runs}) == 6 * 7
    for system in systems:
        tracks = [run.track for run in runs if run.system == system]
        assert sorted(tracks) == ["asr"] * 6 + ["lid"]


def test_no_two_kinds_of_tasks_share_directories_or_results(make, papers_tree):
    kinds = [
        PAPERS,
        PAPERS | {"eval_corpora": ["fleurs"]},
        PAPERS | {"eval_corpora": []},
        PAPERS | {"benchmark": "paper"},
        PAPERS | {"benchmark": "paper", "eval_corpora": ["fleurs"]},
    ]
    found = {}
    for kind in kinds:
        options = make(**kind, tracks=TRACKS, upstream_mode=["eval", "train"])
        for run in planned_runs(options):
            # A head of one language and corpus is the same whatever else is chosen.
            key = dataclasses.replace(run, corpora=()) if run.track == "asr" else run
            assert found.setdefault(run.name, key) == key
    assert len({make(**kind).results for kind in kinds}) == len(kinds)


def test_each_mode_of_a_frozen_upstream_is_a_system_of_its_own(make):
    options = make(
        upstreams=["base", "lamer"],
        tracks=["asr", "lid"],
        tune=["head", "experts"],
        upstream_mode=["eval", "train"],
        allocation="2",
    )
    runs = planned_runs(options)
    systems = {run.system: (run.upstream_mode, run.tune) for run in runs}
    assert systems == {
        "base": ("eval", "head"),
        "base_train_mode": ("train", "head"),
        "lamer": ("eval", "head"),
        "lamer_train_mode": ("train", "head"),
        # What is tuned stays in eval mode.
        "lamer_experts_tuned": ("eval", "experts"),
    }
    assert {run.system for run in runs if run.track == "lid"} == {
        *("base", "base_train_mode", "lamer", "lamer_train_mode")
    }
    described = describe_systems(options)
    assert described.keys() == systems.keys()
    assert "with its dropout" in described["base_train_mode"]


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


# --- upstreams ----------------------------------------------------------------


def test_every_system_of_table_1_has_a_config_with_the_papers_layers(make):
    names = [f"mhubert_147_iter{n}" for n in (1, 2, 3)]
    names += ["hubert_large", "hubert_lora", "lamer_ssl"]
    found = upstream_specs(make(upstreams=names))
    layers = {name: (spec.asr_layer, spec.lid_layer) for name, spec in found.items()}
    assert layers == {
        name: (11, 10) if "mhubert" in name else (22, 21) for name in names
    }
    # Their experiments are those that the pretraining configs are called after.
    for path in (CONF / "upstreams").glob("*.yaml"):
        experiment = yaml.safe_load(path.read_text()).get("experiment")
        if experiment:
            tag = experiment.removeprefix("ssl_")
            assert list(CONF.rglob(f"train_ssl_{tag}.yaml")), path


def test_an_upstreams_own_layer_is_read_unless_the_weighted_sum_is_asked_for(make):
    options = make(upstreams=["mhubert_147_iter3", "base"])
    layers = {(r.system, r.track): r.layer for r in planned_runs(options)}
    assert layers == {
        ("mhubert_147_iter3", "asr"): 11,
        ("mhubert_147_iter3", "lid"): 10,
        ("base", "asr"): 22,
        ("base", "lid"): 21,
    }
    options.asr_layer = options.lid_layer = "all"
    assert {r.layer for r in planned_runs(options)} == {"all"}
    assert all(r.name.endswith("_sum") for r in planned_runs(options))


def test_upstreams_are_found_by_name_path_and_id(make, tmp_path):
    (tmp_path / "my model").mkdir()
    names = ["s3prl:wav2vec2_base_960", "facebook/hubert-base-ls960"]
    names += [str(tmp_path / "my model"), "packed/lamer.zip"]
    specs = upstream_specs(make(upstreams=names))
    assert [spec.system for spec in specs.values()] == [
        *("s3prl-wav2vec2_base_960", "hubert-base-ls960", "my-model", "lamer")
    ]
    assert [spec.source for spec in specs.values()] == names


def test_unknown_and_ambiguous_upstreams_are_refused(make, tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match="--upstreams: found 'hubert_huge', expected"):
        upstream_specs(make(upstreams=["hubert_huge"]))
    with pytest.raises(RecipeError, match="'a/x' and 'b/x' are both called 'x'"):
        upstream_specs(make(upstreams=["a/x", "b/x"]))
    monkeypatch.setattr(upstreams, "CONFIGS", tmp_path)
    for text in ("layer: 3\nsource: x", "description: no source", ""):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(RecipeError, match="mine.yaml: found keys"):
            upstream_specs(make(upstreams=["mine"]))


def joint(make, **changes):
    """Options of ML-SUPERB 2.0, whose data are at ``MLSUPERB2``."""
    values = {
        "benchmark": "mlsuperb2",
        "budgets": ["all"],
        "tracks": ["asr_lid"],
        "eval_langs": ["all"],
        "lid_layer": "all",
        "multi_config": CONF / "train_asr_mlsuperb2_transformer.yaml",
        "upstreams": ["base"],
    }
    return make(**values | changes)


def test_version_2_trains_one_head_of_all_languages(make, tmp_path, monkeypatch):
    root = write_folders(tmp_path / "tree", utterances(train=1, dev=1))
    monkeypatch.setenv("MLSUPERB2", str(root))
    monkeypatch.setenv("MLSUPERB", "/nowhere")
    (run,) = planned_runs(joint(make))
    assert run.name == "asr_lid_mlsuperb2_char_base_sum_transformer"
    assert run.train_sets == tuple(
        f"mlsuperb2_{lang}_train" for lang in ("cmn", "eng", "lug")
    )
    assert run.dev_sets[0] == "mlsuperb2_cmn_valid"
    assert {label: len(sets) for label, sets in run.tests.items()} == {
        "dev": 3,
        "dev_dialect": 3,
    }
    (other,) = planned_runs(
        joint(make, multi_config=CONF / "train_asr_mlsuperb2_e_branchformer.yaml")
    )
    assert other.name == "asr_lid_mlsuperb2_char_base_sum_e_branchformer"
    (fewer,) = planned_runs(joint(make, eval_langs=["lug"]))
    assert fewer.langs == ("lug",) and fewer.tests["dev"] == ("mlsuperb2_lug_dev",)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tracks": ["asr_lid", "lid"]}, "tracks.*'asr_lid lid'.*asr_lid with"),
        ({"budgets": ["1h"]}, "budgets.*'1h'.*all with --benchmark mlsuperb2"),
    ],
)
def test_version_2_has_one_track_and_all_of_its_speech(make, changes, expected):
    with pytest.raises(RecipeError, match=expected):
        planning.check_benchmark(joint(make, **changes))


def test_another_layer_than_version_2_reads_is_said(make, caplog):
    planning.check_benchmark(joint(make, lid_layer=21))
    assert "--lid_layer 21: heads of ML-SUPERB 2.0 read the weighted sum" in caplog.text
    caplog.clear()
    planning.check_benchmark(joint(make))
    assert not caplog.text


def test_heads_of_version_2_are_as_large_as_it_allows():
    """At most 100 million parameters that train (ML-SUPERB 2.0, arXiv 2406.08641)."""
    from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
    from espnet2.asr.encoder.transformer_encoder import TransformerEncoder

    encoders = {
        "transformer": TransformerEncoder,
        "e_branchformer": EBranchformerEncoder,
    }
    sizes = {}
    for path in sorted(CONF.rglob("train_asr_mlsuperb2_*.yaml")):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        with torch.device("meta"):
            head = encoders[config["encoder"]](80, **config["encoder_conf"])
        sizes[path.stem] = sum(p.numel() for p in head.parameters()) / 1e6
    assert len(sizes) == 5
    assert max(sizes.values()) < 100
    # Two blocks of 256; twelve of 512 with a convolution of 3072 beside attention.
    assert 2 < sizes["train_asr_mlsuperb2_transformer"] < 5
    assert 50 < sizes["train_asr_mlsuperb2_e_branchformer"]
