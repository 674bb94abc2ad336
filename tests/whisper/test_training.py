"""ESPnet's own training loop on Whisper, in one process."""

import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet2_lamer.bin.asr_train import main
from espnet2_lamer.tasks.asr import load_whisper_model
from espnet2_lamer.whisper.text import write_token_list
from tests.whisper.small_whisper import LANGUAGES


@pytest.fixture
def data(tmp_path):
    generator = np.random.default_rng(0)
    lines = {"wav.scp": [], "text": [], "utt2langid": [], "shape": []}
    for number, text in enumerate(("one two", "面包车", "收成", "three")):
        samples = 8000 + 1600 * number
        path = tmp_path / f"u{number}.wav"
        soundfile.write(path, generator.normal(size=samples) * 0.1, 16000)
        language = 0 if text.isascii() else 1
        for name, value in (
            ("wav.scp", path),
            ("text", text),
            ("utt2langid", language),
            ("shape", samples),
        ):
            lines[name].append(f"u{number} {value}\n")
    for name, rows in lines.items():
        (tmp_path / name).write_text("".join(rows), encoding="utf-8")
    write_token_list(tmp_path / "tokens.txt")
    return tmp_path


def _train(data, whisper, output, epochs):
    half = {
        "whisper": str(whisper),
        "lora": {
            "method": "multilingual",
            "languages": list(LANGUAGES),
            "rank": 4,
        },
    }
    settings = {
        "encoder": "whisper_lora",
        "encoder_conf": half,
        "decoder": "whisper_lora",
        "decoder_conf": half,
        "model": "whisper_lora",
        "normalize": None,
        "input_size": 1,
        "amp_dtype": "none",
        "token_type": "whisper_multilingual",
        "bpemodel": "whisper_multilingual",
        "token_list": str(data / "tokens.txt"),
        "batch_type": "numel",
        "batch_bins": 30000,
        "optim": "adamw",
        "optim_conf": {"lr": 0.01},
        "max_epoch": epochs,
        "num_workers": 0,
        "keep_nbest_models": 2,
        "best_model_criterion": [["valid", "loss", "min"]],
        "use_matplotlib": False,
        "use_tensorboard": False,
        "num_att_plot": 0,
    }
    config = data / "train.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = ["--config", str(config), "--output_dir", str(output), "--ngpu", "0"]
    for split in ("train", "valid"):
        for name, kind in (
            ("wav.scp", "speech,sound"),
            ("text", "text,text"),
            ("utt2langid", "lang,text_int"),
        ):
            command += [
                f"--{split}_data_path_and_name_and_type",
                f"{data / name},{kind}",
            ]
        command += [f"--{split}_shape_file", str(data / "shape")]
    main([*command, "--resume", "true"])


def test_espnet_trains_resumes_and_averages_a_lora(data, whisper_file):
    output = data / "exp"
    _train(data, whisper_file, output, 1)
    first = torch.load(output / "1epoch.pth")
    _train(data, whisper_file, output, 2)
    second = torch.load(output / "2epoch.pth")
    changed = {k for k, v in second.items() if not torch.equal(v, first[k])}
    assert len(changed) > 10 and all(".multilingual." in name for name in changed)
    assert (output / "2epoch.pth").stat().st_size < 500_000
    assert yaml.safe_load((output / "config.yaml").read_text())["token_list"] == str(
        data / "tokens.txt"
    )
    model = load_whisper_model(
        output / "config.yaml", output / "valid.loss.ave_2best.pth"
    )
    average = model.encoder.full_state()
    for name in changed:
        side, _, own = name.partition(".")
        if side == "encoder":
            mean = (first[name] + second[name]) / 2
            torch.testing.assert_close(average[own], mean)
