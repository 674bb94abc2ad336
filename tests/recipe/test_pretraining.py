"""Stage 7: what is trained in which order, with which options."""

import dataclasses

import pytest

from espnet2_lamer.recipe import pretraining
from espnet2_lamer.recipe.options import Options


@pytest.fixture
def make_options(tmp_path):
    """Options of which only what stage 7 reads is real."""

    def make(**changes):
        values = {field.name: None for field in dataclasses.fields(Options)}
        values |= {
            **{"stage": 7, "stop_stage": 14, "skip_stages": [], "seed": 3},
            **{"ngpu": 0, "num_nodes": 1, "n_clusters": 5},
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

    def train_ssl(config, train, dev, stats, output, classes, options):
        found.append((output.name, options))

    monkeypatch.setattr(pretraining, "train_ssl", train_ssl)
    monkeypatch.setattr(pretraining, "_check_control", lambda options: None)
    monkeypatch.setattr(pretraining, "base_path", lambda options: "base")
    monkeypatch.setattr(pretraining, "load_pretraining_model", lambda path: None)
    monkeypatch.setattr("espnet2_lamer.layers.parameter_report", lambda model: {})
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
    # For both: which languages are replayed.
    for found in (without, beside):
        assert found[found.index("--replay_langs") + 1] == "eng"


def test_without_a_control_no_curve_is_asked_for(trained, make_options):
    pretraining.continue_pretraining(make_options(control=False))
    ((name, options),) = trained
    assert name == "ssl_lamer" and "--monitor_control" not in options
