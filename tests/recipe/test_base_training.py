"""``--retrain true`` in small: two rounds from nothing to a Hugging Face directory."""

import json

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file

from espnet2_lamer.convert import load_hubert
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import write_table
from espnet2_lamer.recipe.base_training import Round, train_from_nothing
from tests.tiny_hubert import ARCHITECTURE

ROUNDS = (Round(None, 5, 0.3, 1), Round(1, 4, 0.8, 2))
CONFIG = {
    "encoder_conf": {
        **ARCHITECTURE,
        "final_dim": 8,
    },
    "model_conf": {"unmasked_weight": 1.0},
    "optim": "adamw",
    "optim_conf": {"lr": 0.001},
    "scheduler": "polynomialdecaylr",
    "scheduler_conf": {"warmup_steps": 2},
    "batch_bins": 64000,
    "collate_fn_conf": {"max_sample_size": 24000, "bucket_samples": 8000},
    "num_iters_per_epoch": 2,
    "num_workers": 0,
    "log_interval": 1,
    "best_model_criterion": [["valid", "loss_m", "min"]],
    "keep_nbest_models": 1,
    "use_tensorboard": False,
    "use_matplotlib": False,
}


def make_dir(directory, lang, count, seed):
    rng = np.random.default_rng(seed)
    utts = [f"{lang}_{seed}_{number}" for number in range(count)]
    for utt in utts:
        path = directory / f"{utt}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.normal(0, 0.1, 24000), 16000)
    write_table(directory / "wav.scp", {u: str(directory / f"{u}.wav") for u in utts})
    write_table(directory / "utt2num_samples", dict.fromkeys(utts, "24000"))
    write_table(directory / "utt2lang", dict.fromkeys(utts, lang))
    return directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Work and output directories of a finished run, and how to run it again."""
    root = tmp_path_factory.mktemp("base_training")
    config = root / "train.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    train = [
        make_dir(root / f"train_{lang}", lang, 4, seed)
        for seed, lang in enumerate(("eng", "yue"))
    ]
    dev = [make_dir(root / "dev_eng", "eng", 2, 9)]

    def run(output, rounds=ROUNDS):
        train_from_nothing(train, dev, config, root / "work", output, rounds=rounds)

    run(root / "final")
    return root / "work", root / "final", run


def test_the_result_is_a_half_precision_hubert_with_its_mask_embedding(trained):
    _, final, _ = trained
    tensors = load_file(final / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    found = load_hubert(final)
    assert found.architecture["encoder_num_layers"] == 2
    assert found.mask_embedding.shape == (16,)


def test_units_are_those_of_mfcc_first_then_of_the_first_rounds_features(trained):
    work, _, _ = trained
    for number, teacher, clusters, layer in ((1, "mfcc", 5, 0), (2, "hf", 4, 1)):
        for split, utterances in (("train", 8), ("dev", 2)):
            labels = work / f"round{number}" / split / "text.km"
            sidecar = json.loads(labels.with_name("text.km.json").read_text())
            assert sidecar["teacher"].endswith(teacher)
            assert (sidecar["K"], sidecar["layer"]) == (clusters, layer)
            assert sidecar["utterances"] == utterances
            assert len(labels.read_text().splitlines()) == utterances
        # Features are large; the units stay.
        assert not (work / f"round{number}" / "features").exists()


def test_rounds_train_as_planned_and_the_second_starts_from_the_first(trained):
    work, _, _ = trained
    one, two = (
        yaml.safe_load((work / f"round{number}/exp/config.yaml").read_text())
        for number in (1, 2)
    )
    assert [c["encoder_conf"]["mask_prob"] for c in (one, two)] == [0.3, 0.8]
    assert [c["max_epoch"] for c in (one, two)] == [1, 2]
    assert [c["scheduler_conf"]["total_steps"] for c in (one, two)] == [500, 1000]
    assert one["encoder_conf"].get("base") is None
    assert two["encoder_conf"]["base"] == str(work / "round1" / "hf")
    first, second = (
        load_hubert(path).mask_embedding
        for path in (work / "round1" / "hf", trained[1])
    )
    # Everything trains, in the second round too.
    assert not torch.allclose(first, second, atol=1e-5)
    assert torch.allclose(first, second, atol=0.05)
    lines = (work / "curves.csv").read_text().splitlines()
    assert any("round 1" in line for line in lines)
    assert any("round 2" in line for line in lines)


def test_a_run_that_was_killed_does_not_repeat_a_finished_round(trained, tmp_path):
    work, final, run = trained
    log = work / "round1" / "exp" / "train.log"
    before = log.read_text()
    run(tmp_path / "again")
    assert log.read_text() == before
    expected, found = (
        load_file(path / "model.safetensors") for path in (final, tmp_path / "again")
    )
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_missing_table_is_named(trained, tmp_path):
    broken = make_dir(tmp_path / "broken", "eng", 1, 0)
    (broken / "utt2lang").unlink()
    with pytest.raises(RecipeError, match="broken/utt2lang: file not found"):
        train_from_nothing(
            *([broken], [broken], tmp_path / "train.yaml"),
            *(tmp_path / "work", tmp_path / "final"),
            rounds=ROUNDS,
        )
