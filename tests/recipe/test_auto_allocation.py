"""--allocation auto: counts from the base, written down, or a clear refusal."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet2_lamer.analysis.language_probe import fisher_ratio
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers.apportion import apportion

LEVEL = {"cmn": 0.3, "eng": -0.3, "yue": 0.0}


class Base(torch.nn.Module):
    """States whose language shift grows with the layer: layer l holds l * level."""

    num_layers = 4

    def extract_features(self, wav, lengths):
        frames = wav.shape[1] // 320
        mean = wav.mean()
        noise = wav[0, : frames * 3].reshape(1, frames, 3)
        return [noise + layer * mean for layer in range(5)], torch.tensor([frames])


@pytest.fixture
def options(tmp_path, monkeypatch):
    from espnet2_lamer.recipe import pretraining

    monkeypatch.setattr(pretraining, "load_model", lambda path: Base())
    monkeypatch.setattr(pretraining, "base_path", lambda o: "the/base")
    monkeypatch.setattr(
        pretraining, "read_checkpoints", lambda o: {"base": {"sha256": "0a"}}
    )
    train = tmp_path / "raw" / "ssl_train"
    train.mkdir(parents=True)
    rng = np.random.default_rng(0)
    scp, langs = [], []
    for lang, level in LEVEL.items():
        for number in range({"cmn": 9, "eng": 6, "yue": 7}[lang]):
            path = tmp_path / f"{lang}{number}.wav"
            soundfile.write(path, rng.normal(level, 0.1, 4000).clip(-1, 1), 16000)
            scp.append(f"{lang}{number} {path}")
            langs.append(f"{lang}{number} {lang}")
    (train / "wav.scp").write_text("\n".join(scp) + "\n")
    (train / "utt2lang").write_text("\n".join(langs) + "\n")
    config = tmp_path / "ssl.yaml"
    lamer = {"allocation": "2,4,6,8", "top_k": 2}
    config.write_text(yaml.safe_dump({"encoder_conf": {"lamer": lamer}}))
    return SimpleNamespace(
        raw=tmp_path / "raw",
        seed=3,
        device="cpu",
        ssl_config=config,
        ssl_experiment=tmp_path / "exp" / "ssl_lamer_auto",
    )


def change(options, **lamer):
    config = yaml.safe_load(options.ssl_config.read_text())
    config["exclude_langs"] = lamer.pop("exclude_langs", [])
    config["encoder_conf"]["lamer"] |= lamer
    options.ssl_config.write_text(yaml.safe_dump(config))


def run(options):
    from espnet2_lamer.recipe.pretraining import automatic_allocation

    return automatic_allocation(options)


def test_counts_follow_the_criterion_under_the_budget_of_the_config(options):
    text = run(options)
    found = json.loads((options.ssl_experiment / "allocation.json").read_text())
    criterion = found["criterion_per_layer"]
    assert criterion == sorted(criterion)
    assert found["allocation"] == apportion(20, criterion, 2)
    assert text == ",".join(map(str, found["allocation"]))
    assert (found["budget"], found["budget_of"], found["minimum"]) == (20, "2,4,6,8", 2)
    assert found["utterances"] == {"cmn": 6, "eng": 6, "yue": 6}
    assert found["base_sha256"] == "0a"
    assert "Fisher" in found["criterion"]


def test_the_criterion_is_of_utterance_means_of_each_blocks_output(options):
    # As many utterances of each as are there, so the sample is everything.
    scp = dict(line.split() for line in (options.raw / "ssl_train/wav.scp").open())
    for file in ("wav.scp", "utt2lang"):
        path = options.raw / "ssl_train" / file
        kept = [x for x in path.read_text().splitlines() if x.split()[0][3:] < "6"]
        path.write_text("\n".join(kept) + "\n")
    run(options)
    found = json.loads((options.ssl_experiment / "allocation.json").read_text())
    for layer in (1, 4):
        groups = {}
        for lang in LEVEL:
            for number in range(6):
                wav = torch.from_numpy(
                    soundfile.read(scp[f"{lang}{number}"], dtype="float32")[0]
                )
                state = Base().extract_features(wav[None], None)[0][layer][0]
                groups.setdefault(lang, []).append(state.double().mean(0).numpy())
        assert found["criterion_per_layer"][layer - 1] == pytest.approx(
            fisher_ratio(groups)
        )


def test_the_same_seed_gives_the_same_counts(options):
    first = run(options)
    content = (options.ssl_experiment / "allocation.json").read_text()
    assert run(options) == first
    assert (options.ssl_experiment / "allocation.json").read_text() == content


def test_soft_routing_needs_one_expert_a_layer(options):
    change(options, top_k=None, allocation=5)
    run(options)
    found = json.loads((options.ssl_experiment / "allocation.json").read_text())
    assert (found["minimum"], found["budget"]) == (1, 20)


def test_missing_languages_utterances_or_experts_are_refused(options):
    change(options, exclude_langs=["eng", "yue"])
    with pytest.raises(
        RecipeError, match="utt2lang: found cmn, expected speech of two"
    ):
        run(options)
    change(options, allocation=1)
    with pytest.raises(RecipeError, match="found 4 experts for 4 layers, expected at"):
        run(options)
    change(options, allocation="2,4,6,8")
    path = options.raw / "ssl_train" / "utt2lang"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(x for x in lines if x[:3] != "eng" or x[3] == "0") + "\n")
    with pytest.raises(RecipeError, match="found 1 utterance of eng, expected 2"):
        run(options)
    path.unlink()
    with pytest.raises(RecipeError, match="utt2lang"):
        run(options)
