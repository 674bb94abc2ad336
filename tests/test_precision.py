"""What ``amp_dtype: auto`` stands for, where that is recorded, what resuming keeps."""

import logging

import pytest
import torch
import yaml

from espnet2_lamer import precision
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.precision import choose_amp_dtype, native_bf16


def cpu(patch, emulates=True, amx=False, avx512_bf16=False, limit="", machine="x86_64"):
    """Pretend to be on another CPU."""
    patch.setattr(
        torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: emulates, raising=False
    )
    patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    patch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    patch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    patch.setattr(precision.platform, "machine", lambda: machine)


@pytest.mark.parametrize(
    ("found", "native"),
    [
        ({"emulates": False}, False),  # AVX2
        ({}, False),  # AVX-512 without bf16 instructions
        ({"avx512_bf16": True}, True),
        ({"amx": True}, True),
        ({"amx": True, "limit": "avx2"}, False),
        ({"amx": True, "avx512_bf16": True, "limit": "AVX512_CORE"}, False),
        ({"avx512_bf16": True, "limit": "AVX512_CORE_BF16"}, True),
        ({"machine": "aarch64"}, True),
        ({"machine": "aarch64", "emulates": False}, False),
    ],
)
def test_auto_is_bf16_where_the_cpu_has_its_instructions(
    monkeypatch, caplog, found, native
):
    cpu(monkeypatch, **found)
    with caplog.at_level(logging.INFO):
        assert choose_amp_dtype("auto", "cpu") == ("bf16" if native else "none")
    reason = native_bf16("cpu")[1]
    assert reason in caplog.text and "amp_dtype: auto is" in caplog.text


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bf16_on_a_gpu_that_does_not_emulate_it(monkeypatch, native):
    # Turing cards say yes when emulation counts.
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or native,
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card 1")
    assert choose_amp_dtype("auto", "cuda") == ("bf16" if native else "none")
    assert "Card 1" in native_bf16("cuda:0")[1]


@pytest.mark.parametrize("native", [True, False])
def test_bf16_by_hand_is_kept_and_its_cost_is_said_where_it_is_emulated(
    monkeypatch, caplog, native
):
    monkeypatch.setattr(precision, "native_bf16", lambda device: (native, "its CPU"))
    for asked in ("bf16", "none", "fp16"):
        assert choose_amp_dtype(asked, "cpu") == asked
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == (0 if native else 1)
    assert native or "bf16 is emulated here (its CPU)" in warnings[0]


def test_this_cpu_computes_in_what_auto_stands_for():
    found = choose_amp_dtype("auto", "cpu")
    with torch.autocast("cpu", precision.AMP_DTYPES[found], enabled=found != "none"):
        product = torch.ones(2, 3) @ torch.ones(3, 2)
    assert product.dtype == (torch.bfloat16 if found == "bf16" else torch.float32)


def recorded(directory):
    return yaml.safe_load((directory / "config.yaml").read_text())["amp_dtype"]


def test_pretraining_records_it_goes_on_in_it_and_refuses_another_by_name(
    tmp_path, monkeypatch, caplog
):
    from tests.train.small_training import LamerHubertTask, command, make_corpus

    make_corpus(tmp_path / "corpus", 8)

    def train(native, **changes):
        monkeypatch.setattr(precision, "native_bf16", lambda device: (native, "CPU"))
        options = command(tmp_path / "corpus", tmp_path / "exp", **changes)
        LamerHubertTask.main(cmd=options)

    train(True, max_epoch=1)
    assert recorded(tmp_path / "exp") == "bf16"
    with caplog.at_level(logging.INFO):
        train(False, max_epoch=2)
    assert recorded(tmp_path / "exp") == "bf16"
    assert "bf16, in which this training began" in caplog.text
    assert "emulated here" in caplog.text
    assert (tmp_path / "exp" / "2epoch.pth").is_file()
    with pytest.raises(RecipeError, match='amp_dtype: "bf16" -> "none"'):
        train(False, max_epoch=3, amp_dtype="none")


def test_a_head_goes_on_in_its_recorded_precision_and_refuses_another_by_name(
    tmp_path, monkeypatch
):
    from espnet2.tasks.asr import ASRTask

    from espnet2_lamer.tasks.asr import LamerASRTask

    monkeypatch.setattr(
        ASRTask,
        "main_worker",
        lambda args: (tmp_path / "config.yaml").write_text(yaml.safe_dump(vars(args))),
    )

    def train(native, asked="auto"):
        monkeypatch.setattr(precision, "native_bf16", lambda device: (native, "CPU"))
        options = ["--token_list", "tokens.txt", "--resume", "true"]
        LamerASRTask.main(
            cmd=[*options, "--output_dir", str(tmp_path), "--amp_dtype", asked]
        )
        return recorded(tmp_path)

    assert train(True) == "bf16"
    assert train(False) == "bf16"
    # Nothing was trained yet.
    assert train(False, "none") == "none"
    assert train(True) == "none"
    parts = ("model", "reporter", "optimizers", "schedulers")
    torch.save(dict.fromkeys(parts), tmp_path / "checkpoint.pth")
    with pytest.raises(RecipeError, match="amp_dtype: found bf16, expected none"):
        train(True, "bf16")
    assert train(True) == "none"
