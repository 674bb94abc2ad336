"""Which upstreams the options name, their layers and their modes."""

import pytest
import yaml

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe import upstreams
from espnet2_lamer.recipe.benchmark import describe_systems, planned_runs
from espnet2_lamer.recipe.upstreams import upstream_specs
from tests.recipe.evaluation_options import CONF


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
