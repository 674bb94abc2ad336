"""Stage 8 on a GPU: routing, masked accuracy and forgetting are those of the CPU."""

import argparse
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml

from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.recipe import analysis
from espnet2_lamer.tasks.hubert import LamerHubertTask
from tests.train.small_training import UNITS

FILES = ("routing.json", "expert_language.json", "masked_accuracy.json")
LANGS = ("cmn", "yue")


@pytest.fixture(scope="module")
def recipe(corpus, hubert_dirs, tmp_path_factory):
    """The options of a run whose pretraining is over."""
    root = tmp_path_factory.mktemp("stage8")
    for name in ("ssl_train", "ssl_dev"):
        shutil.copytree(corpus, root / "raw" / name)
        langs = {
            utt: LANGS[int(number)]
            for utt, number in read_table(corpus / "utt2langid").items()
        }
        write_table(root / "raw" / name / "utt2lang", langs)
    base = str(hubert_dirs["layer_norm"])
    (root / "checkpoints.json").write_text(json.dumps({"base": {"path": base}}))
    config = {
        "encoder": "lamer_hubert",
        "model": "lamer",
        "num_classes": UNITS,
        "token_list": [*map(str, range(UNITS)), "<unk>", "<sos/eos>"],
        "encoder_conf": {
            "base": base,
            "lamer": {"allocation": "2,4", "rank": 2},
            "final_dim": 8,
            "mask_length": 3,
        },
        "model_conf": {},
        "best_model_criterion": [["valid", "loss_m", "min"]],
    }
    torch.manual_seed(3)
    model = LamerHubertTask.build_model(argparse.Namespace(**config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_()
    experiment = root / "ssl_lamer"
    experiment.mkdir()
    (experiment / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(model.state_dict(), experiment / "valid.loss_m.best.pth")
    return SimpleNamespace(
        raw=root / "raw",
        checkpoints=root / "checkpoints.json",
        ssl_dev=root / "raw" / "ssl_dev",
        ssl_experiment=experiment,
        random_upstream=hubert_dirs["layer_norm"],
        trainings=[experiment],
        analysed=["base", "lamer"],
        langs=list(LANGS),
        asr_layer=1,
        seed=0,
        nj=1,
    )


def test_figures_are_those_of_the_cpu(gpu, recipe, tmp_path, monkeypatch):
    devices = set()
    collect = analysis.RoutingStatistics.add

    def add(statistics, lang, record, frames):
        devices.update(routing.probs.device.type for routing in record)
        collect(statistics, lang, record, frames)

    monkeypatch.setattr(analysis.RoutingStatistics, "add", add)
    # The page of it is the same wherever the figures were computed.
    monkeypatch.setattr(analysis, "report_pretraining", lambda options: None)

    def figures(device):
        recipe.analysis = tmp_path / device
        recipe.device, recipe.ngpu = device, int(device == "cuda")
        analysis.analyse(recipe)
        names = (*FILES, "forgetting.json")
        return {
            name: json.loads((recipe.analysis / name).read_text()) for name in names
        }

    expected = figures("cpu")
    assert devices == {"cpu"}
    with gpu():
        found = figures("cuda")
    assert devices == {"cpu", "cuda"}
    assert close(found, expected)
    forgetting = expected["forgetting.json"]
    assert set(forgetting["cka"]) == set(forgetting["phone_probe"]) == set(LANGS)


def close(found, expected):
    """The same values; a near tie may fall otherwise on a real device."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        return all(close(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        assert len(found) == len(expected)
        return all(map(close, found, expected))
    if isinstance(expected, float):
        return found == pytest.approx(expected, rel=0.02, abs=0.02)
    return found == expected or (
        isinstance(expected, int) and abs(found - expected) <= 2
    )
