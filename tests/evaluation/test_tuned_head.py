"""A head and experts trained through ESPnet: released, resumed, finished."""

import shlex

import pytest
import torch
import yaml

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation import downstream
from espnet2_lamer.evaluation.downstream import HeadOptions, train_head
from espnet2_lamer.evaluation.recogniser_files import read_record
from tests.evaluation.tiny_head import CONFIG, write_set
from tests.export.tiny import write_base, write_experiment

EPOCHS, BATCHES, FROZEN = 3, 2, 3


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    root = tmp_path_factory.mktemp("tuned")
    write_experiment(root / "ssl", write_base(root / "base"))
    write_set(root / "train", "train", 9, 1)
    write_set(root / "dev", "dev", 4, 2)
    config = CONFIG | {
        "max_epoch": EPOCHS,
        "num_iters_per_epoch": BATCHES,
        "keep_nbest_models": EPOCHS,
        "frontend_conf": {"freeze_encoder_steps": FROZEN},
        "upstream_optim_conf": {"experts": {"lr": 0.02}},
        "text_conf": {"case": "lower", "punctuation": "keep"},
    }
    (root / "tuning.yaml").write_text(yaml.safe_dump(config))
    for part in ("train", "dev"):
        text = (root / part / "text").read_text()
        (root / part / "text.raw").write_text(text)
    train_head(
        str(root / "ssl"),
        root / "train",
        root / "dev",
        root / "store",
        root / "exp",
        root / "tuning.yaml",
        HeadOptions(layer=2, tune="experts"),
    )
    return root


def weights(path):
    state = torch.load(path, weights_only=True)
    return {k: v for k, v in state.items() if k.startswith("frontend.upstream.")}


def of_the_pretraining(root):
    from espnet2_lamer import load_model

    state = load_model(root / "ssl").state_dict()
    return {f"frontend.upstream.{key}": value for key, value in state.items()}


def test_the_experts_are_released_after_so_many_updates_of_the_run(tuned):
    before = of_the_pretraining(tuned)
    for epoch in range(1, EPOCHS + 1):
        found = weights(tuned / f"exp/{epoch}epoch.pth")
        assert found and all("lora_" in k or "routers" in k for k in found)
        same = all(torch.equal(value, before[key]) for key, value in found.items())
        assert same == (epoch * BATCHES <= FROZEN), epoch


def test_the_finished_model_has_what_was_tuned_and_nothing_of_the_training(tuned):
    final = weights(tuned / "exp/final/model.pth")
    before = of_the_pretraining(tuned)
    moved = {key for key, value in final.items() if not torch.equal(value, before[key])}
    assert moved and all("lora_" in key or "routers" in key for key in moved)
    assert final.keys() == before.keys()
    config = yaml.safe_load((tuned / "exp/final/config.yaml").read_text())
    assert config["frontend_conf"].keys() == {"upstream_conf", "layer", "fs"}
    record = read_record(tuned / "exp/final")
    assert record["tune"] == "experts"
    assert record["text"] == {"punctuation": "keep", "case": "lower"}
    assert "a" in config["token_list"] and "A" not in config["token_list"]
    # No feature of a frozen upstream was stored.
    assert not (tuned / "store").exists()


@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_that_was_stopped_before_or_after_the_release_ends_the_same(
    tuned, tmp_path, stop
):
    log = (tuned / "exp/train.log").read_text().splitlines()[0]
    words = shlex.split(log.partition("bin.asr_train ")[2])
    words[words.index("--output_dir") + 1] = str(tmp_path / "exp")
    for more in (["--max_epoch", str(stop)], []):
        downstream._run_espnet([*words, *more], tmp_path / "exp")
    assert "The training was resumed" in (tmp_path / "exp/train.log").read_text()
    name = f"{EPOCHS}epoch.pth"
    expected = torch.load(tuned / "exp" / name, weights_only=True)
    found = torch.load(tmp_path / "exp" / name, weights_only=True)
    assert int(found["frontend.updates"]) == EPOCHS * BATCHES
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_hypotheses_are_scored_without_what_the_references_lack(tuned, tmp_path):
    from espnet2_lamer.evaluation.head_decoding import write_hypotheses
    from espnet2_lamer.fileio.datadir import read_table

    found = {"u": ("well, a b.", "w e", "1 2")}
    write_hypotheses(tmp_path, found, read_record(tuned / "exp/final"))
    assert read_table(tmp_path / "text") == {"u": "WELL A B"}
    assert read_table(tmp_path / "text.written") == {"u": "well, a b."}


def test_an_upstream_that_trains_must_be_a_file(tuned, tmp_path):
    from espnet2_lamer import load_model

    arguments = (tuned / "train", tuned / "dev", tmp_path / "s", tmp_path / "e")
    with pytest.raises(RecipeError, match="tune all: the upstream was given as a modu"):
        train_head(
            load_model(tuned / "base"),
            *arguments,
            tuned / "tuning.yaml",
            HeadOptions(layer=2, tune="all"),
        )
    with pytest.raises(RecipeError, match="tune: found 'some', expected one of head"):
        HeadOptions(tune="some")
