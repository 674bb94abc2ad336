"""ESPnet's ASR task knows our frontends by name and trains in bf16 on a CPU."""

import argparse
import copy
from pathlib import Path

import pytest
import torch
import yaml
from espnet2.tasks.asr import ASRTask, frontend_choices

from espnet2_lamer.bin import asr_inference, asr_train
from espnet2_lamer.tasks.asr import LamerASRTask, register_asr

CONF = Path(__file__).parents[2] / "conf"


def head_args(**changes):
    options = {
        "token_list": ["<blank>", "<unk>", "A", "B", "<sos/eos>"],
        "frontend": "stored_features",
        "frontend_conf": {"dim": 16},
        "preencoder": "linear",
        "preencoder_conf": {"input_size": 16, "output_size": 16},
        "encoder": "transformer",
        "encoder_conf": {
            "output_size": 16,
            "attention_heads": 2,
            "linear_units": 32,
            "num_blocks": 1,
            "input_layer": "conv2d2",
            "dropout_rate": 0.0,
            "positional_dropout_rate": 0.0,
        },
        "model_conf": {"ctc_weight": 1.0},
        **changes,
    }
    default = LamerASRTask.get_default_config()
    return argparse.Namespace(**copy.deepcopy(default | options))


def build(**changes):
    torch.manual_seed(0)
    return LamerASRTask.build_model(head_args(**changes))


def batch():
    generator = torch.Generator().manual_seed(0)
    return {
        "speech": torch.randn(2, 40, 16, generator=generator),
        "speech_lengths": torch.tensor([40, 31]),
        "text": torch.tensor([[2, 3, 2], [3, 2, -1]]),
        "text_lengths": torch.tensor([3, 2]),
    }


def test_registration_is_by_name_and_repeatable():
    register_asr()
    register_asr()
    assert {"stored_features", "lamer_upstream"} <= set(frontend_choices.classes)
    for task in (ASRTask, LamerASRTask):
        args = task.get_parser().parse_args(["--frontend", "lamer_upstream"])
        assert args.frontend == "lamer_upstream"


def test_commands_take_espnets_options_and_ours():
    args = asr_train.get_parser().parse_args(
        ["--frontend", "stored_features", "--frontend_conf", "dim=4"]
        + ["--amp_dtype", "bf16", "--ctc_conf", "dropout_rate=0.1"]
    )
    assert args.frontend_conf == {"dim": 4} and args.amp_dtype == "bf16"
    args = asr_inference.get_parser().parse_args(
        ["--output_dir", "o", "--data_path_and_name_and_type", "a,speech,sound"]
    )
    assert args.output_dir == "o"


def test_bf16_changes_the_encoder_only_and_little():
    exact, fast = build(amp_dtype="none"), build(amp_dtype="bf16")
    for model in (exact, fast):
        model.eval()
    data = batch()
    dtypes = []
    fast.ctc.register_forward_pre_hook(lambda _, args: dtypes.append(args[0].dtype))
    fast.encoder.encoders[0].register_forward_pre_hook(
        lambda _, args: dtypes.append(args[0].dtype)
    )
    fast.encoder.embed.conv.register_forward_hook(
        lambda module, args, output: dtypes.append(output.dtype)
    )
    expected, _, _ = exact(**copy.deepcopy(data))
    found, _, _ = fast(**copy.deepcopy(data))
    assert dtypes[0] == torch.bfloat16 and dtypes[-1] == torch.float32
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=0.01)
    assert found.item() != expected.item()


def test_bf16_training_updates_fp32_weights_every_step():
    model = build(amp_dtype="bf16")
    optimizer = torch.optim.SGD(model.parameters(), 0.003)
    losses = []
    for _ in range(3):
        loss, _, _ = model(**copy.deepcopy(batch()))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[2] < losses[1] < losses[0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["asr", "lid"])
def test_the_mini_head_is_the_official_one_but_for_what_its_header_says(name):
    full = yaml.safe_load((CONF / f"train_{name}_mlsuperb.yaml").read_text())
    mini = yaml.safe_load(
        (CONF / f"tuning/train_{name}_mlsuperb_mini.yaml").read_text()
    )
    small = {"input_layer": "conv1d2", "num_blocks": 1}
    assert mini["encoder_conf"] == full["encoder_conf"] | small
    for key in (
        *("normalize", "preencoder", "encoder", "decoder", "model_conf"),
        *("batch_size", "batch_type"),
    ):
        assert mini[key] == full[key], key
    updates = mini["max_epoch"] * mini["num_iters_per_epoch"] // mini["accum_grad"]
    assert mini["scheduler_conf"]["total_steps"] == updates
