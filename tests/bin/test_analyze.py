"""``bin.analyze``: one page about a model, from its files and a little speech."""

import argparse
import json

import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet2_lamer.analysis.listening import read_speech_set
from espnet2_lamer.analysis.report import OWN_BASE, report_on, summary
from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.bin import analyze
from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.convert.huggingface import save_huggingface
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers import LamerConfig, add_lamer, experts_off
from espnet2_lamer.report.model import render_page
from tests.report.offline import check_page
from tests.tiny_hubert import ARCHITECTURE

LAMER = {"allocation": "2,4", "rank": 2, "targets": ["output_dense"]}
PITCH = {"eng": 200.0, "yue": 900.0}


def write_tones(folder):
    """Tones: the pitch is the language; phones are quiet and loud stretches."""
    tables = {name: [] for name in ("wav.scp", "utt2lang", "utt2spk", "phones.ctm")}
    rng = np.random.default_rng(0)
    for lang, pitch in PITCH.items():
        for i in range(12):
            utt, path = f"{lang}_{i:02}", folder / f"{lang}_{i:02}.wav"
            time = np.arange(8000) / 16_000
            loud = np.where(time * 8 % 2 < 1, 0.02, 0.3)
            tone = np.sin(2 * np.pi * (pitch + 20 * (i % 4)) * time + i)
            noise = 0.01 * rng.standard_normal(8000)
            soundfile.write(path, loud * tone + noise, 16_000)
            tables["wav.scp"].append(f"{utt} {path}")
            tables["utt2lang"].append(f"{utt} {lang}")
            tables["utt2spk"].append(f"{utt} s{i % 4}")
            for part in range(4):
                phone = "loud" if part % 2 else "quiet"
                tables["phones.ctm"].append(f"{utt} 1 {part / 8} 0.125 {phone}")
    for name, lines in tables.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("speech"))


def build(lamer=None, trained=True):
    torch.manual_seed(0)
    hubert = build_hubert(ARCHITECTURE)
    if lamer is not None:
        add_lamer(hubert, LamerConfig(**lamer))
        if trained:
            with torch.no_grad():
                for name, parameter in hubert.named_parameters():
                    if name.endswith("lora_B"):
                        parameter.normal_(std=0.5)
    return Upstream(hubert, lamer)


def report(data, model, base=None, layers=(1, 2), **choice):
    names = {"model": "exp/ssl_tiny", "base": None if base is None else "the/base"}
    return report_on(model, base, read_speech_set(data, **choice), list(layers), names)


@pytest.fixture(scope="module")
def full(data):
    return report(data, build(LAMER))


def test_every_part_is_there_for_a_model_with_experts(full):
    assert full["notes"] == []
    assert full["base"] == OWN_BASE
    assert full["model"]["experts"] == [2, 4]
    # 2 and 4 experts from 32 to 16 values of rank 2, and routers that read 16.
    assert full["model"]["parameters"]["lora"] == 6 * 2 * (32 + 16)
    assert full["model"]["parameters"]["router"] == 6 * 16
    assert not {"trainable", "head"} & set(full["model"]["parameters"])
    rows = full["routing"]["layers"]
    assert [(r["layer"], r["experts"]) for r in rows] == [(1, 2), (2, 4)]
    for row in rows:
        assert sum(row["load"]) == pytest.approx(row["experts"])
        assert 0 <= row["routing_entropy"] <= np.log(row["experts"]) + 1e-9
        assert 0 < row["information_p"] <= 1
    probe = full["language_probe"]
    assert (probe["by_speaker"], probe["drawn"], probe["chance"]) == (True, 4, 50)
    assert [row["layer"] for row in probe["layers"]] == [0, 1, 2]
    for row in probe["layers"]:
        low, high = row["model"]["interval"]
        assert low <= row["model"]["value"] <= high
    for found in full["forgetting"].values():
        assert found["layers"] == [1, 2]
        assert all(0 < cka < 1 for cka in found["cka"])
        assert [row["layer"] for row in found["phone_probe"]] == [1, 2]
        assert "other speakers" in found["note"]


def test_experts_that_never_trained_forgot_nothing(data):
    found = report(data, build(LAMER, trained=False))
    for lang in PITCH:
        row = found["forgetting"][lang]
        assert row["cka"] == pytest.approx([1, 1])
        assert [(r["difference"], r["p"]) for r in row["phone_probe"]] == [(0, 1)] * 2
    for row in found["language_probe"]["layers"]:
        assert (row["difference"], row["p"]) == (0, 1)


def test_experts_switched_off_are_the_base_itself(data, full):
    # `build` makes the same backbone with and without experts.
    torch.manual_seed(0)
    model = build(LAMER)
    base = build(LAMER)
    with experts_off(base):
        named = report(data, model, base)
    assert named["base"] == "the/base"
    assert named["forgetting"] == full["forgetting"]
    assert named["language_probe"] == full["language_probe"]


def test_a_plain_hubert_gets_what_makes_sense(data):
    found = report(data, build())
    assert found["routing"] is None and found["forgetting"] is None
    assert "base" not in found["language_probe"]["layers"][0]
    assert any("routing" in note for note in found["notes"])
    assert any("--base" in note for note in found["notes"])
    check_page(render_page(found))


def test_one_language_is_not_told_from_others(data):
    found = report(data, build(LAMER), langs=["yue"], max_utts=6)
    assert found["language_probe"] is None
    assert [note for note in found["notes"] if "one language" in note]
    assert found["routing"]["layers"][0]["mutual_information"] == 0
    check_page(render_page(found))


def test_a_base_of_another_depth_is_refused(data):
    deeper = Upstream(build_hubert(ARCHITECTURE | {"encoder_num_layers": 3}))
    with pytest.raises(RecipeError, match="--base: found a model with 3 layers, exp"):
        report(data, build(LAMER), deeper, max_utts=4)


def test_a_diverged_model_is_refused(data):
    model = build(LAMER)
    torch.nn.init.constant_(
        model.wav2vec2.encoder.transformer.layers[1].layer_norm.weight, torch.nan
    )
    with pytest.raises(RecipeError, match="layer 2 of the model gives values that are"):
        report(data, model, max_utts=4)


def test_the_page_opens_offline(full):
    # Two heat-maps, the language probe, CKA and phones.
    assert check_page(render_page(full)) == 5


def test_the_page_shows_the_figures_and_escapes_names(full):
    changed = json.loads(json.dumps(full))
    changed["model"]["source"] = "<script>alert(1)</script>"
    changed["notes"] = ["a < b"]
    page = render_page(changed)
    assert "&lt;script&gt;" in page and "a &lt; b" in page
    assert f"{full['routing']['layers'][1]['mutual_information']:.4f}" in page
    check_page(page)


def test_the_summary_names_the_worst_layer_of_a_language(full):
    changed = json.loads(json.dumps(full))
    rows = changed["forgetting"]["yue"]["phone_probe"]
    rows[0] |= {"difference": -7.5, "p": 0.0005}
    rows[0]["model"]["value"], rows[0]["base"]["value"] = 80.0, 87.5
    (line,) = [line for line in summary(changed) if line.startswith("yue")]
    assert "in layer 1: 87.5 to 80.0 % (p < 0.001, the worst of 2 layers)" in line


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A pretraining experiment as training leaves it."""
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    root = tmp_path_factory.mktemp("experiment")
    save_huggingface(build().wav2vec2, root / "base")
    config = {
        "encoder": "lamer_hubert",
        "model": "lamer",
        "num_classes": 3,
        "token_list": ["0", "1", "2", "<unk>", "<sos/eos>"],
        "encoder_conf": {"base": str(root / "base"), "lamer": LAMER, "final_dim": 8},
        "model_conf": {},
        "best_model_criterion": [["valid", "loss_m", "min"]],
    }
    model = LamerHubertTask.build_model(argparse.Namespace(**config))
    (root / "exp").mkdir()
    (root / "exp" / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(model.state_dict(), root / "exp" / "valid.loss_m.best.pth")
    (root / "exp" / "parameters.json").write_text('{"total": 123, "lora": 45}')
    return root / "exp"


def test_the_command_writes_page_and_figures_of_an_experiment(
    experiment, data, tmp_path
):
    output = tmp_path / "report"
    options = ["--model", str(experiment), "--data", str(data), "--max_utts", "5"]
    options += ["--output", str(output), "--langs", "eng yue", "--layers", "2"]
    analyze.main(options)
    assert sorted(p.name for p in output.iterdir()) == ["report.html", "report.json"]
    found = json.loads((output / "report.json").read_text())
    assert found["model"]["parameters_in_training"] == {"total": 123, "lora": 45}
    assert [x["utterances"] for x in found["data"]["languages"].values()] == [5, 5]
    assert found["forgetting"]["eng"]["layers"] == [2]
    assert check_page((output / "report.html").read_text()) == 5
    first = (output / "report.html").read_bytes()
    analyze.main(options)
    assert (output / "report.html").read_bytes() == first


def test_a_failed_run_leaves_no_report(experiment, data, tmp_path):
    output = tmp_path / "report"
    options = ["--model", str(experiment), "--data", str(data)]
    with pytest.raises(RecipeError, match="--layers: found 9, expected 0 .* to 2"):
        analyze.main([*options, "--output", str(output), "--layers", "9"])
    assert not output.exists()
