"""Heads on a frozen upstream in train mode: nothing stored, another head."""

import json

import pytest
import torch
import yaml

from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.convert.huggingface import save_huggingface
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.downstream import HeadOptions, train_head
from tests.evaluation.tiny_head import CONFIG, TINY, write_set

SHORT = CONFIG | {"max_epoch": 1, "num_iters_per_epoch": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two sets, a config, and the directory of an upstream without dropout."""
    root = tmp_path_factory.mktemp("upstream_mode")
    write_set(root / "train", "train", 6, 1)
    write_set(root / "dev", "dev", 3, 2)
    (root / "head.yaml").write_text(yaml.safe_dump(SHORT))
    torch.manual_seed(0)
    save_huggingface(build_hubert(TINY["hubert"]), root / "still")
    save_huggingface(build_hubert(TINY["hubert"]), root / "dropping")
    path = root / "dropping" / "config.json"
    config = json.loads(path.read_text()) | {"hidden_dropout": 0.5}
    path.write_text(json.dumps(config))
    return root


def train(root, upstream, mode):
    out = root / f"{upstream}_{mode}"
    sets = root / "train", root / "dev", root / "store"
    options = HeadOptions(layer=1, upstream_mode=mode)
    final = train_head(root / upstream, *sets, out, root / "head.yaml", options)
    weights = torch.load(final / "model.pth", weights_only=True)
    return out, {k: v for k, v in weights.items() if "upstream" not in k}


def same(one, other):
    return all(torch.equal(one[key], other[key]) for key in one)


def test_train_mode_gives_another_head_and_stores_no_features(place):
    out, dropped = train(place, "dropping", "train")
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["frontend"] == "lamer_upstream"
    assert config["frontend_conf"]["upstream_mode"] == "train"
    assert not (place / "store").exists()
    assert json.loads((out / "inputs.json").read_text())["upstream_mode"] == "train"
    # What is decoded, packed and used is in eval mode.
    final = yaml.safe_load((out / "final/config.yaml").read_text())
    assert "upstream_mode" not in final["frontend_conf"]
    out, kept = train(place, "dropping", "eval")
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["frontend"] == "stored_features"
    assert "upstream_mode" not in json.loads((out / "inputs.json").read_text())
    assert kept.keys() == dropped.keys() and not same(kept, dropped)


def test_without_dropout_train_mode_is_eval_mode(place):
    out, trained = train(place, "still", "train")
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["frontend"] == "stored_features"
    assert same(trained, train(place, "still", "eval")[1])


def test_a_module_without_its_source_cannot_be_run_in_training(place):
    upstream = Upstream.from_architecture(
        TINY | {"hubert": TINY["hubert"] | {"encoder_dropout": 0.1}}
    )
    with pytest.raises(
        RecipeError, match="upstream_mode train: the upstream was given"
    ):
        train_head(
            upstream,
            place / "train",
            place / "dev",
            place / "store",
            place / "module",
            place / "head.yaml",
            HeadOptions(layer=1, upstream_mode="train"),
        )
    with pytest.raises(RecipeError, match="upstream_mode: found 'test'"):
        HeadOptions(upstream_mode="test")
