"""Heads of ML-SUPERB's own lists: its tasks, the paper's, and version 2.0."""

import dataclasses

import pytest
import torch
import yaml

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe import benchmark as planning
from espnet2_lamer.recipe.benchmark import planned_runs, planned_tasks
from tests.mlsuperb2_tree import utterances, write_folders
from tests.recipe.evaluation_options import CONF

TRACKS = ["asr", "multi_asr", "lid", "asr_lid"]


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
    config = CONF / "train_asr_mlsuperb2_e_branchformer.yaml"
    branched = joint(make, multi_config=config)
    (other,) = planned_runs(branched)
    assert joint(make).results.name == "results_mlsuperb2_transformer"
    assert branched.results.name == "results_mlsuperb2_e_branchformer"
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
