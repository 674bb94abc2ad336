"""Stage 7: what is trained in which order, and its sanity check in its place."""

import dataclasses
import json
import logging

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe import pretraining
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.runner import Runner
from espnet2_lamer.recipe.stages import ssl1


@pytest.fixture
def make_options(tmp_path):
    """Options of which only what stage 7 reads is real."""

    def make(**changes):
        values = {field.name: None for field in dataclasses.fields(Options)}
        values |= {
            **{"stage": 7, "stop_stage": 14, "skip_stages": [], "seed": 3},
            **{"ngpu": 0, "num_nodes": 1, "n_clusters": 5, "sanity": False},
            **{"expdir": tmp_path / "exp", "dumpdir": tmp_path / "dump"},
            **{"ssl_config": tmp_path / "train.yaml", "ssl_tag": "lamer"},
            **{"allocation": "2,4", "control": True, "preset": "mini"},
            **{"new_langs": ["cmn", "yue"], "replay_langs": ["eng"]},
        }
        return Options(**values | changes)

    return make


@pytest.fixture
def trained(monkeypatch, make_options):
    """Record the experiments that stage 7 trains, with their options."""
    found = []

    def train_ssl(config, train, dev, stats, output, classes, options, log):
        found.append((output.name, options))

    monkeypatch.setattr(pretraining, "train_ssl", train_ssl)
    monkeypatch.setattr(pretraining, "_check_control", lambda options: None)
    monkeypatch.setattr(pretraining, "base_path", lambda options: "base")
    monkeypatch.setattr(pretraining, "load_pretraining_model", lambda path: None)
    monkeypatch.setattr(pretraining, "parameter_report", lambda model: {})
    return found


def test_the_control_is_trained_first_and_its_curve_shown_by_the_other(
    trained, make_options
):
    options = make_options()
    pretraining.continue_pretraining(options)
    (control, without), (lamer, beside) = trained
    assert (control, lamer) == ("ssl_head_only", "ssl_lamer")
    assert "--monitor_control" not in without
    path = str(options.control_experiment)
    assert beside[beside.index("--monitor_control") + 1] == path
    folders = [
        words[words.index("--feature_cache_dir") + 1] for words in (without, beside)
    ]
    assert folders == [str(options.dumpdir / "feature_cache")] * 2
    # For both: which languages are replayed.
    for found in (without, beside):
        assert found[found.index("--replay_langs") + 1] == "eng"


def test_without_a_control_no_curve_is_asked_for(trained, make_options):
    pretraining.continue_pretraining(make_options(control=False))
    ((name, options),) = trained
    assert name == "ssl_lamer" and "--monitor_control" not in options


def test_sanity_takes_the_place_of_training_and_ends_the_recipe(make_options):
    stages = list(ssl1.stages_of(make_options(sanity=True)))
    assert [stage.number for stage in stages] == list(range(8))
    assert stages[:7] == [*ssl1][:7] and stages[7] != ssl1["pretraining"]
    assert [*ssl1.stages_of(make_options())] == [*ssl1]


def test_a_passed_sanity_check_is_done_and_says_nothing_about_training(
    make_options, monkeypatch, caplog
):
    """Its record is its own: stage 7 is neither done by it nor outdated."""
    caplog.set_level(logging.INFO)
    options = make_options(sanity=True, ssl_tag="milore")
    check = ssl1.stages_of(options)[7]
    calls = []

    def work(chosen):
        calls.append(None)
        if len(calls) == 1:
            raise RecipeError("sanity: one batch could not be learnt")
        path = chosen.ssl_experiment / "sanity.json"
        path.parent.mkdir(parents=True)
        path.write_text("{}")

    stage = dataclasses.replace(check, inputs=lambda o: [], run=work)
    with pytest.raises(RecipeError, match="could not be learnt"):
        Runner([stage], options).run()
    for _ in range(2):
        Runner([stage], options).run()
    assert len(calls) == 2
    assert "sanity check of pretraining: done, nothing changed" in caplog.text
    records = sorted(p.name for p in (options.expdir / "stages").glob("07*"))
    assert records == ["07_milore_sanity.json"]


def test_the_sanity_check_trains_the_configs_own_model(
    make_options, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    commands = []

    def run_espnet(task, name, command, log):
        commands.append((command, log.name))
        log.parent.mkdir(parents=True)
        found = {"initial_bits": 2.5, "final_bits": 1.0, "final_accuracy": 0.9}
        (log.parent / "sanity.json").write_text(json.dumps(found | {"updates": 40}))

    monkeypatch.setattr(pretraining, "run_espnet", run_espnet)
    monkeypatch.setattr(pretraining, "_data_options", lambda *a: ["--langs", "eng"])
    monkeypatch.setattr(pretraining, "base_path", lambda options: "base")
    pretraining.check_one_batch(make_options())
    ((command, log),) = commands
    text = " ".join(command)
    assert "--sanity true" in text and "lamer.allocation=2,4" in text
    assert "--encoder_conf base=base" in text and "--seed 3" in text
    assert log == "sanity.log"
    assert "2.500 bits before, 1.000 after 40 updates, accuracy 0.900" in caplog.text
