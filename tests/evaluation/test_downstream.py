"""A head trained on stored features becomes a waveform-in model with the same output.

One process, one trained head (conftest.py): importing ESPnet's task and training
are the slow parts.
"""

import json
import logging

import kaldiio
import pytest
import soundfile
import torch
import yaml

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation import downstream, head_decoding
from espnet2_lamer.fileio.datadir import read_table, write_table
from tests.evaluation.tiny_head import (
    CONFIG,
    GREEDY,
    run_training,
    write_set,
)


def test_head_learns_and_its_loss_is_reported_by_espnet(trained):
    log = (trained / "exp" / "train.log").read_text()
    assert "3epoch results" in log
    stats = torch.load(trained / "exp" / "checkpoint.pth", weights_only=True)[
        "reporter"
    ]["stats"]
    assert stats[3]["train"]["loss"] < 0.6 * stats[1]["train"]["loss"]


def test_final_config_names_no_path_and_holds_upstream_and_tokens(trained, upstream):
    config = yaml.safe_load((trained / "exp/final/config.yaml").read_text())

    def strings(value):
        if isinstance(value, dict):
            value = [*value, *value.values()]
        if isinstance(value, list):
            for item in value:
                yield from strings(item)
        elif isinstance(value, str):
            yield value

    assert not [s for s in strings(config) if str(trained) in s or s.startswith("/")]
    assert config["frontend"] == "lamer_upstream"
    assert config["frontend_conf"]["upstream_conf"] == upstream.architecture()
    assert config["token_list"][0] == "<blank>" and "<space>" in config["token_list"]
    weights = torch.load(trained / "exp/final/model.pth", weights_only=True)
    for key, value in upstream.state_dict().items():
        assert torch.equal(weights[f"frontend.upstream.{key}"], value)


def test_final_model_encodes_waveforms_as_the_head_encodes_stored_features(trained):
    from espnet2_lamer.tasks.asr import LamerASRTask

    final = head_decoding.load_speech2text(trained / "exp/final", GREEDY).asr_model
    stored, _ = LamerASRTask.build_model_from_file(
        trained / "exp/config.yaml", trained / "exp/valid.loss.ave.pth"
    )
    stored.eval()
    features = kaldiio.load_scp(str(trained / "exp/data/dev/feats.scp"))
    for utt, path in read_table(trained / "dev" / "wav.scp").items():
        wav = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        feats = torch.from_numpy(features[utt].copy())
        with torch.no_grad():
            expected, _ = stored.encode(feats[None], torch.tensor([len(feats)]))
            found, _ = final.encode(wav[None], torch.tensor([len(wav)]))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_finished_head_is_kept_and_changed_inputs_train_anew(
    trained, upstream, monkeypatch
):
    runs = []
    monkeypatch.setattr(
        downstream, "_run_espnet", lambda cmd, directory: runs.append(cmd)
    )
    before = (trained / "exp/final/model.pth").stat().st_mtime_ns
    assert run_training(trained, upstream) == trained / "exp/final"
    assert not runs
    assert (trained / "exp/final/model.pth").stat().st_mtime_ns == before
    copied = trained.parent / "copy"
    import shutil

    shutil.copytree(trained, copied)
    with pytest.raises(RecipeError, match="training wrote no valid.loss.ave.pth"):
        run_training(copied, upstream, seed=1)
    assert len(runs) == 1 and not (copied / "exp/final").exists()
    # The earlier head is put aside, not overwritten.
    (aside,) = copied.glob("exp.old-*")
    assert (aside / "final/model.pth").is_file()


def test_interrupted_head_goes_on_after_its_last_epoch(trained, upstream, tmp_path):
    import shutil

    root = tmp_path / "interrupted"
    shutil.copytree(trained, root, symlinks=True)
    # State after epoch 3 of 4: the config asks for one more epoch than was done.
    config = {**CONFIG, "max_epoch": 4}
    (root / "head.yaml").write_text(yaml.safe_dump(config))
    inputs = json.loads((root / "exp/inputs.json").read_text())
    inputs["config"] = downstream.sha256_file(root / "head.yaml")
    # The copy's audio has the same bytes but other paths: same texts, other stores.
    shutil.rmtree(root / "exp/final")
    for name in ("train", "dev"):
        table = read_table(root / name / "wav.scp")
        assert all(path.startswith(str(trained)) for path in table.values())
    (root / "exp/inputs.json").write_text(json.dumps(inputs))
    run_training(root, upstream)
    log = (root / "exp/train.log").read_text()
    assert "The training was resumed" in log
    assert "4epoch results" in log and log.count("1epoch results") == 1


def test_features_beyond_the_limit_are_not_stored(
    trained, upstream, tmp_path, monkeypatch, caplog
):
    commands = []
    monkeypatch.setattr(
        downstream, "_run_espnet", lambda command, directory: commands.append(command)
    )
    arguments = (
        upstream,
        trained / "train",
        trained / "dev",
        tmp_path / "store",
        tmp_path / "exp",
        trained / "head.yaml",
    )
    with pytest.raises(RecipeError, match="more than feature_store_gb"):
        downstream.train_head(*arguments, downstream.HeadOptions(feature_store_gb=1e-6))
    with pytest.raises(RecipeError, match="training wrote no"):
        with caplog.at_level(logging.INFO):
            downstream.train_head(
                *arguments,
                downstream.HeadOptions(feature_store_gb=1e-6),
                source="the/upstream",
            )
    (command,) = commands
    assert "upstream=the/upstream" in command and "lamer_upstream" in command
    speech = [word for word in command if word.endswith(",speech,sound")]
    assert len(speech) == 2
    assert "runs in every epoch" in caplog.text
    assert not (tmp_path / "store").exists()
    # The batches are those of stored features.
    shape = read_table(tmp_path / "exp/data/train/speech_shape")
    assert shape == read_table(trained / "exp/data/train/speech_shape")
    with pytest.raises(RecipeError, match="training wrote no"):
        downstream.train_head(*arguments, downstream.HeadOptions())
    assert "stored_features" in commands[1]


def test_a_learning_rate_replaces_the_configs_and_its_schedules(tmp_path):
    config = tmp_path / "head.yaml"
    head = downstream.HeadOptions(learning_rate=3e-4)
    for schedule, expected in (({}, 1), ({"scheduler_conf": {"max_lr": 1}}, 2)):
        config.write_text(yaml.safe_dump(CONFIG | schedule))
        options = downstream._schedule_options(config, head)
        found = [word for word in options if word.endswith("lr=0.0003")]
        assert found == ["lr=0.0003", "max_lr=0.0003"][:expected]


def test_missing_or_contradicting_targets_are_named(tmp_path, upstream):
    data = write_set(tmp_path / "set", "utt", 2, 0)
    with pytest.raises(RecipeError, match="target: found 'speaker'"):
        downstream.HeadOptions(target="speaker")
    dirs, config = [data, data], tmp_path / "head.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    with pytest.raises(RecipeError, match="utt_00 is also in another of these sets"):
        downstream.train_head(
            upstream, dirs, dirs, tmp_path / "s", tmp_path / "e", config
        )
    write_table(data / "text", {"utt_00": "A"})
    with pytest.raises(RecipeError, match="text: utt_01: no text"):
        downstream.train_head(
            upstream, data, data, tmp_path / "s", tmp_path / "e", config
        )
    assert not (tmp_path / "e").exists()
