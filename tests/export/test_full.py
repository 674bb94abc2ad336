"""A packed continual-pretraining model needs no base and gives the same states."""

import argparse
import shutil

import pytest
import torch
import yaml

import espnet2_lamer
from espnet2_lamer.convert.packed import unpack_model
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.export.zoo import pack_model

ARCHITECTURE = {
    "extractor_conv_layer_config": [[8, 10, 5], [8, 8, 8], [8, 4, 4], [8, 2, 2]],
    "encoder_embed_dim": 16,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_ff_interm_features": 32,
}
UNITS = 5


@pytest.fixture
def experiment(tmp_path):
    """Config and epoch file of a tiny Lamer model on a base in another directory."""
    from espnet2_lamer.convert.architecture import build_hubert
    from espnet2_lamer.convert.huggingface import save_huggingface
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    espnet2_lamer.register()
    torch.manual_seed(0)
    base = build_hubert(ARCHITECTURE)
    save_huggingface(base, tmp_path / "base")
    config = {
        "encoder": "lamer_hubert",
        "model": "lamer",
        "num_classes": UNITS,
        "token_list": [*map(str, range(UNITS)), "<unk>", "<sos/eos>"],
        "encoder_conf": {
            "base": str(tmp_path / "base"),
            "lamer": {"allocation": "2,4", "rank": 2, "balance": "bias"},
            "final_dim": 8,
        },
        "model_conf": {},
        "best_model_criterion": [["valid", "loss", "min"]],
    }
    model = LamerHubertTask.build_model(argparse.Namespace(**config)).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora" in name or "router" in name:
                tensor.normal_()
        for name, tensor in model.named_buffers():
            if name.endswith("selection_bias"):
                tensor.normal_()
    directory = tmp_path / "exp"
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(model.state_dict(), directory / "valid.loss.best.pth")
    return directory, _states(model)


def _speech():
    waveforms = torch.sin(torch.arange(6400).reshape(2, 3200) / 7.0)
    return waveforms, torch.tensor([3200, 2000])


def _states(model):
    with torch.no_grad():
        states, _ = model.encoder.wav2vec2.extract_features(*_speech())
    return states


def test_the_base_travels_in_the_zip(experiment, tmp_path):
    from espnet2_lamer.bin.export import main
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    directory, expected = experiment
    output = tmp_path / "ssl.zip"
    with pytest.raises(RecipeError, match="--task: found asr, but .* of task ssl"):
        main(["--task=asr", f"--experiment={directory}", f"--output={output}"])
    # What an experiment is, it says itself.
    main([f"--experiment={directory}", f"--output={output}"])
    shutil.rmtree(tmp_path / "base")
    shutil.rmtree(directory)
    files = unpack_model(output, tmp_path / "cache")
    model, _ = LamerHubertTask.build_model_from_file(
        files["ssl_train_config"], files["ssl_model_file"]
    )
    found = _states(model.eval())
    assert len(found) == len(expected) == 2
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    # The same zip through the package's own door; its states begin one layer earlier.
    upstream = espnet2_lamer.load_model(output)
    states, _ = upstream.extract_features(*_speech())
    for ours, theirs in zip(states[1:-1], expected[:-1], strict=True):
        assert torch.equal(ours, theirs)


def test_exporting_twice_gives_the_same_zip(experiment, tmp_path):
    from espnet2_lamer.bin.export import main

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        main(
            [
                "--task=ssl",
                f"--experiment={experiment[0]}",
                f"--output={tmp_path / name / 'ssl.zip'}",
            ]
        )
    one, two = (tmp_path / name / "ssl.zip" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_packed_head_brings_its_upstream_along(experiment, tmp_path):
    from espnet2.bin.asr_inference import Speech2Text
    from espnet2.tasks.asr import ASRTask

    upstream = espnet2_lamer.load_model(experiment[0])
    config = {
        "token_list": ["<blank>", "<unk>", "a", "b", "<sos/eos>"],
        "token_type": "word",
        "bpemodel": None,
        "init": None,
        "input_size": None,
        "frontend": "lamer_upstream",
        "frontend_conf": {"upstream_conf": upstream.architecture(), "layer": "all"},
        "specaug": None,
        "normalize": None,
        "preencoder": "linear",
        "preencoder_conf": {"input_size": 16, "output_size": 8},
        "encoder": "transformer",
        "encoder_conf": {
            "output_size": 8,
            "attention_heads": 2,
            "linear_units": 8,
            "num_blocks": 1,
            "input_layer": "conv2d2",
        },
        "postencoder": None,
        "decoder": None,
        "ctc_conf": {},
        "model": "espnet",
        "model_conf": {"ctc_weight": 1.0},
    }
    torch.manual_seed(1)
    model = ASRTask.build_model(argparse.Namespace(**config)).eval()
    model.frontend.upstream.load_state_dict(upstream.state_dict())
    final = tmp_path / "asr" / "final"
    final.mkdir(parents=True)
    (final / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(model.state_dict(), final / "model.pth")
    pack_model("asr", final / "config.yaml", final / "model.pth", tmp_path / "asr.zip")
    for name in ("base", "exp", "asr"):
        shutil.rmtree(tmp_path / name)

    files = unpack_model(tmp_path / "asr.zip", tmp_path / "cache")
    packed = Speech2Text(**files, beam_size=1, ctc_weight=1.0).asr_model
    with torch.no_grad():
        expected, _ = model.encode(*_speech())
        found, _ = packed.encode(*_speech())
    assert torch.equal(found, expected)
