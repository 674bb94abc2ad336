"""Which systems --tune asks for; none is mixed with the frozen probe's numbers."""

from pathlib import Path

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe.benchmark import describe_systems, packages, planned_runs
from espnet2_lamer.recipe.command import read_options
from espnet2_lamer.recipe.files import of_heads
from espnet2_lamer.recipe.stages import ssl1

RECIPE = Path(__file__).parents[2] / "egs2" / "lamer_ssl" / "ssl1"


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Read the options of the mini preset, with changes."""
    monkeypatch.chdir(RECIPE)

    def make(**changes):
        values = {"expdir": str(tmp_path / "exp"), "eval_langs": "eng", **changes}
        return read_options(ssl1, [f"--{k}={v}" for k, v in values.items()])

    return make


def test_each_tune_is_a_system_and_a_directory_of_its_own(read):
    options = read(tune="head experts all", tracks="asr lid", eval_langs="eng cmn")
    found = {(r.track, r.tune): set() for r in planned_runs(options)}
    for run in planned_runs(options):
        found[run.track, run.tune].add(run.system)
    assert found == {
        ("asr", "head"): {"random", "base", "lamer"},
        ("asr", "experts"): {"lamer_experts_tuned"},
        ("asr", "all"): {
            "random_all_tuned",
            "base_all_tuned",
            "lamer_all_tuned",
        },
        ("lid", "head"): {"random", "base", "lamer"},
    }
    names = [run.name for run in planned_runs(options)]
    assert len(names) == len(set(names))
    assert "asr_eng_char_lamer_experts_tuned_layer3" in names
    described = describe_systems(options)
    assert {run.system for run in planned_runs(options)} <= described.keys()
    assert "no frozen probe" in described["lamer_experts_tuned"]
    assert "no frozen probe" not in described["lamer"]


def test_tuned_heads_have_their_own_config_and_are_packed_too(read):
    options = read(tune="head experts", tracks="asr")
    configs = {run.tune: Path(run.config).name for run in planned_runs(options)}
    assert configs == {
        "head": "train_asr_mlsuperb_mini.yaml",
        "experts": "train_asr_finetune_mini.yaml",
    }
    assert "asr_eng_char_lamer_experts_tuned_layer3" in packages(options)


def test_without_tune_the_recipe_is_what_it_was(read):
    runs = planned_runs(read(tracks="asr"))
    assert {run.tune for run in runs} == {"head"}
    assert {run.name for run in runs} == {
        f"asr_eng_char_{system}_layer3" for system in ("random", "base", "lamer")
    }


def test_language_models_are_systems_of_their_own_and_follow_their_files(
    read, tmp_path
):
    text = tmp_path / "more.txt"
    text.write_text("one\n")
    options = read(use_ngram="true", use_lm="true", lm_train_text=f"eng={text}")
    described = describe_systems(options)
    assert described["lamer_lm"].endswith("ASR with a 6-gram and a transformer LM")
    files = of_heads(options, ("asr", "multi_asr"))
    assert {text, options.inference_config, options.lm_config} <= {*files}
    assert not {text, options.lm_config} & {*of_heads(options, ("lid", "asr_lid"))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune": "some"}, "--tune: found 'some', expected some of head, experts, all"),
        ({"tune": "head head"}, "--tune: found head head, expected different names"),
        ({"tune": "experts", "upstreams": "base"}, "experts with --upstreams base"),
        ({"tune": "all", "upstreams": "s3prl:mfcc"}, "all with --upstreams s3prl:mfcc"),
        (
            {"tune": "lid_routed", "tracks": "multi_asr", "upstreams": "lamer"},
            "lid_routed with --upstreams lamer, expected .* without experts, such as b",
        ),
        (
            {"tune": "lid_routed"},
            "lid_routed with --tracks asr lid, expected multi_asr",
        ),
        (
            {"tune": "lid_routed", "tracks": "multi_asr"},
            "lid_routed with eng alone, expected two or more languages",
        ),
        ({"lm_train_text": "eng=x"}, "--lm_train_text: found 'eng=x', expected LANG"),
        ({"lm_train_text": f"fra={__file__}"}, "with LANG one of eng cmn yue"),
        ({"ngram_num": "0"}, "--ngram_num: found 0, expected 1 or more"),
        (
            {"finetune_config": "conf/none.yaml"},
            "--finetune_config: conf/none.yaml not",
        ),
    ],
)
def test_what_cannot_be_tuned_or_modelled_is_refused_first(read, changes, message):
    with pytest.raises(RecipeError, match=message):
        read(**changes)


def test_languages_route_one_recogniser_of_all_on_upstreams_without_experts(read):
    options = read(
        tune="head lid_routed",
        tracks="asr multi_asr lid",
        eval_langs="eng cmn",
        upstreams="base lamer",
    )
    runs = [r for r in planned_runs(options) if r.tune == "lid_routed"]
    assert [(r.track, r.system, r.langs) for r in runs] == [
        ("multi_asr", "base_lid_routed_tuned", ("eng", "cmn"))
    ]
    assert Path(runs[0].config).name == "train_asr_finetune_mini.yaml"
    assert "one of each language" in describe_systems(options)["base_lid_routed_tuned"]
    whole = read(
        tune="lid_routed",
        tracks="multi_asr",
        eval_langs="eng cmn",
        ssl_config="conf/tuning/train_ssl_full_finetuning.yaml",
    )
    systems = {run.system for run in planned_runs(whole)}
    assert "full_finetuning_lid_routed_tuned" in systems
    assert {"random_lid_routed_tuned", "base_lid_routed_tuned"} < systems
