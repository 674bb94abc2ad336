"""A packed continual-pretraining model needs no base and gives the same states."""

import argparse
import shutil

import pytest
import torch
import yaml

import espnet2_lamer
from espnet2_lamer.export.zoo import unpack_model

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
    from espnet2_lamer.convert.architecture import build_hubert, init_hubert
    from espnet2_lamer.convert.huggingface import save_huggingface
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    espnet2_lamer.register()
    torch.manual_seed(0)
    base = build_hubert(ARCHITECTURE)
    init_hubert(base)
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


def _states(model):
    speech = torch.sin(torch.arange(6400).reshape(2, 3200) / 7.0)
    with torch.no_grad():
        states, _ = model.encoder.wav2vec2.extract_features(
            speech, torch.tensor([3200, 2000])
        )
    return states


def test_the_base_travels_in_the_zip(experiment, tmp_path):
    from espnet2_lamer.bin.export import main
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    directory, expected = experiment
    output = tmp_path / "ssl.zip"
    main(["--task=ssl", f"--experiment={directory}", f"--output={output}"])
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
