"""``--dry_run true``: needs K alone, reads no weights, writes nothing, logs counts."""

import logging
from pathlib import Path

import pytest
import torch
import yaml

from espnet2_lamer.errors import RecipeError
from tests.tiny_hubert import ARCHITECTURE

MAIN = Path(__file__).parents[2] / "conf" / "train_ssl_lamer.yaml"


@pytest.fixture(scope="module")
def run():
    from espnet2_lamer.bin.hubert_train import main

    def run(*options, config=MAIN):
        command = ["--config", str(config), "--num_classes", "1000", *options]
        main([*command, "--dry_run", "true"])

    return run


@pytest.fixture
def variant(tmp_path):
    """Write the main config with some keys changed, and return its path."""

    def write(**changes):
        config = yaml.safe_load(MAIN.read_text(encoding="utf-8"))
        for key, value in changes.items():
            if isinstance(value, dict):
                config[key] = config.get(key, {}) | value
            else:
                config[key] = value
        path = tmp_path / "variant.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


def test_counts_allocation_optimizer_and_schedule_are_logged(run, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    run("--output_dir", str(tmp_path / "exp"))
    text = " ".join(caplog.text.split())
    for phrase in (
        "trainable 16,424,704 4.949 % of the total, 5.207 % of the backbone",
        "active 5,898,240 lora that one frame uses, 1.870 % of the backbone",
        "2 in layers 1-6, 4 in layers 7-12, 6 in layers 13-18, 8 in layers 19-24; 120",
        # 24 layers: 4 LoRA tensors and a router each; head: 3; mask embedding.
        f"group of {24 * 5 + 3 + 1} tensors, 16,424,704 values",
        "adamw lr=0.0015 betas=[0.9, 0.98] eps=1e-06 weight_decay=0.01",
        "polynomialdecaylr warmup_steps=32000 total_steps=400000",
        "updates: 400,000 (max_epoch 200 x num_iters_per_epoch 2,000)",
        "audio per update: 225.00 s",
        "45.7 epochs over the paper's 547.494 h",
    ):
        assert phrase in text, phrase
    assert not [r for r in caplog.records if r.levelno > logging.INFO]
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_the_model_is_on_a_real_device(run, monkeypatch):
    from espnet2_lamer.tasks import dry_run as module

    seen = []

    def look(model):
        seen.extend(model.parameters())
        return real(model)

    real = module.parameter_report
    monkeypatch.setattr(module, "parameter_report", look)
    run()
    assert {p.device for p in seen} == {torch.device("meta")}


def write_tiny_base(directory):
    from espnet2_lamer.convert.architecture import build_hubert
    from espnet2_lamer.convert.huggingface import save_huggingface

    architecture = {
        **ARCHITECTURE,
        "encoder_num_layers": 4,
    }
    model = build_hubert(architecture)
    model.mask_embedding = torch.rand(16)
    save_huggingface(model, directory)


def test_a_base_gives_its_size_but_not_its_weights(run, caplog, tmp_path):
    base = tmp_path / "base"
    write_tiny_base(base)
    (base / "model.safetensors").write_bytes(b"not weights")
    caplog.set_level(logging.INFO)
    run("--encoder_conf", f"base={base}", "--encoder_conf", "lamer.allocation=2,3")
    text = " ".join(caplog.text.split())
    # 10 experts of rank 12 on both Linears, 10 router rows; the mask embedding is kept.
    assert f"lora {10 * 2 * 12 * (16 + 32):,} A" in text
    assert f"head {1000 * 768 + 17 * 768:,} unit" in text
    assert "2 in layers 1-2, 3 in layers 3-4; 10 in all" in text


def test_a_base_id_that_is_not_at_hand_is_taken_for_hubert_large(run, caplog):
    caplog.set_level(logging.INFO)
    run("--encoder_conf", "base=nobody/no-such-hubert")
    (warning,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    assert "nobody/no-such-hubert" in warning.getMessage()
    assert "architecture (HuBERT-Large where it names none) is assumed" in (
        warning.getMessage()
    )
    # The base's mask embedding is frozen and counts as backbone.
    assert "315,438,720" in caplog.text


def test_a_base_directory_that_is_not_there_is_refused(run):
    with pytest.raises(RecipeError, match="/no/such/base: no such directory"):
        run("--encoder_conf", "base=/no/such/base")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--encoder_conf", "lamer.allocation=2,4,6,8,10"], "'2,4,6,8,10' names 5"),
        (["--encoder_conf", "lamer.allocation=2,x"], "'2,x': expected integers"),
        (["--encoder_conf", "lamer.top_k=9"], "top_k: found 9, expected at most 2"),
        (["--optim_conf", "eps=-1"], "Invalid epsilon value: -1"),
        (["--scheduler_conf", "warmup_steps=400000"], "found warmup_steps 400000"),
        (["--collate_fn_conf", "pad=true"], "collate_fn_conf.pad: unknown key"),
        (["--token_list", "no/tokens.txt"], "No such file or directory: 'no/tokens"),
    ],
)
def test_what_the_model_refuses_is_said_with_the_file(run, options, message):
    with pytest.raises(RecipeError, match=message) as error:
        run(*options)
    assert str(error.value).startswith(f"{MAIN}: ")


def test_a_token_list_is_checked_where_it_is_given(run, tmp_path):
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("0\n1\n<unk>\n<sos/eos>\n")
    with pytest.raises(RecipeError, match=r"0 .. 999 in order.*found 4 lines"):
        run("--token_list", str(tokens))


def test_a_schedule_that_does_not_fit_the_updates_is_pointed_out(run, caplog):
    caplog.set_level(logging.WARNING)
    batches = ["--update_bins", "0", "--num_iters_per_epoch", "8000"]
    run("--max_epoch", "100", "--accum_grad", "3", *batches)
    messages = [r.getMessage() for r in caplog.records]
    # ceil(8000 / 3) updates in each of 100 epochs.
    assert any(
        "found 400,000, but" in m and "make 266,700 updates" in m for m in messages
    )
    assert any(
        "no multiple of accum_grad (3): the last update of each epoch has 2" in m
        for m in messages
    )


def test_without_update_bins_an_update_is_accum_grad_batches(run, caplog):
    caplog.set_level(logging.INFO)
    run("--update_bins", "0", "--num_iters_per_epoch", "8000", "--accum_grad", "4")
    assert "num_iters_per_epoch 8,000 / accum_grad 4)" in caplog.text
    assert "audio per update: at most 225.00 s" in caplog.text


def test_epochs_of_one_pass_leave_the_number_of_updates_open(run, variant, caplog):
    caplog.set_level(logging.INFO)
    run(config=variant(num_iters_per_epoch=None, max_epoch=7))
    assert "updates: 7 passes over the data" in caplog.text
    assert "epochs over the paper" not in caplog.text


def test_the_command_line_ends_with_1_and_names_the_key(variant, caplog):
    from espnet2_lamer.bin.common import run_main
    from espnet2_lamer.bin.hubert_train import main

    path = variant(encoder_conf={"mask_porb": 0.8})
    command = ["--config", str(path), "--num_classes", "9", "--dry_run", "true"]
    with pytest.raises(SystemExit) as exit_:
        run_main(lambda: main(command))
    assert exit_.value.code == 1
    (error,) = (r for r in caplog.records if r.levelno == logging.ERROR)
    assert f"{path}: encoder_conf.mask_porb: unknown key" in error.getMessage()
    assert "did you mean mask_prob?" in error.getMessage()
