"""``run.sh --preset paper`` for real, on tiny corpora in their true layouts.

Base and teacher are random and narrow, with the files, keys, norms and convolutions of
HuBERT-Large and mHuBERT-147. Only sizes and numbers of updates are overridden.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from espnet2_lamer.fileio.datadir import read_table
from tests.corpus_trees import write_paper_corpora

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "egs2" / "lamer_ssl" / "ssl1"
UNITS = 12
LAYERS = 4


def _checkpoint(directory, layers, large):
    """Write a random ``HubertModel`` as the published directories are.

    Args:
        directory: Where to.
        layers: Transformer layers.
        large: As facebook/hubert-large-ll60k: norm after every convolution, biases in
            them, pre-norm transformer, one pickle with the old names of weight norm. Or
            as utter-project/mHuBERT-147: group norm after the first convolution, no
            biases, post-norm, safetensors. Both want normalised waveforms.
    """
    from safetensors.torch import save_file
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(layers)
    model = HubertModel(
        HubertConfig(
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=48,
            conv_dim=(16,) * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
            feat_extract_norm="layer" if large else "group",
            conv_bias=large,
            do_stable_layer_norm=large,
        )
    )
    model.config.save_pretrained(directory)
    config = directory / "config.json"
    written = json.loads(config.read_text()) | {"architectures": ["HubertModel"]}
    config.write_text(json.dumps(written))
    (directory / "preprocessor_config.json").write_text(
        json.dumps({"do_normalize": True, "sampling_rate": 16000})
    )
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    if not large:
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    part = "encoder.pos_conv_embed.conv."
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        state[part + old] = state.pop(f"{part}parametrizations.weight.{new}")
    torch.save(state, directory / "pytorch_model.bin")
    return directory


def _shorter(name, target, **changes):
    config = yaml.safe_load((RECIPE / "conf" / name).read_text(encoding="utf-8"))
    for key, value in changes.items():
        assert key in config, key
        config[key] = config[key] | value if isinstance(value, dict) else value
    target.write_text(yaml.safe_dump(config))
    return target


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """Run stages of the paper preset; ``paper.root`` holds data, dump and exp."""
    root = tmp_path_factory.mktemp("paper")
    archives = write_paper_corpora(root / "archives", count=10, seconds=2.1)
    head = {"max_epoch": 1, "num_iters_per_epoch": 4, "accum_grad": 2}
    options = {
        "nj": 1,
        "base": _checkpoint(root / "base", LAYERS, large=True),
        "teacher": _checkpoint(root / "teacher", 3, large=False),
        "teacher_layer": 2,
        "n_clusters": UNITS,
        "ssl_config": _shorter(
            "train_ssl_lamer.yaml",
            root / "train_ssl_lamer.yaml",
            max_epoch=2,
            num_iters_per_epoch=2,
            # Two seconds and more each.
            update_bins=100_000,
            scheduler_conf={"warmup_steps": 1, "total_steps": 4},
        ),
        "asr_config": _shorter("train_asr_mlsuperb.yaml", root / "asr.yaml", **head),
        "asr_layer": LAYERS - 1,
        "lid_config": _shorter("train_lid_mlsuperb.yaml", root / "lid.yaml", **head),
        "lid_layer": LAYERS - 2,
        **{f"{name}dir": root / name for name in ("data", "dump", "exp")},
    }

    def run(stage, stop_stage):
        chosen = {**options, "stage": stage, "stop_stage": stop_stage}
        return subprocess.run(
            ["./run.sh", "--preset", "paper", "--python", sys.executable]
            + [
                word
                for name, value in chosen.items()
                for word in (f"--{name}", str(value))
            ],
            cwd=RECIPE,
            capture_output=True,
            text=True,
            env={**os.environ, **archives, "MLSUPERB": "", "PYTHONPATH": str(ROOT)},
        )

    def checked(stage, stop_stage):
        words = map(str, (stage, stop_stage))
        result = run(*words)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stderr

    run.root, run.checked, run.archives = root, checked, archives
    return run


@pytest.fixture(scope="module")
def units(paper):
    """The log of stages 0 to 6, with a damaged clip in CommonVoice's zh-CN."""
    clips = Path(paper.archives["COMMONVOICE"]) / "zh-CN" / "clips"
    clip = clips / "common_voice_zh-CN_8.mp3"
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    return paper.checked(0, 6)


@pytest.mark.slow
def test_stages_0_to_6_make_units_from_archives_and_two_checkpoints(paper, units):
    raw, exp = paper.root / "dump/raw", paper.root / "exp"
    labels = {}
    for split in ("ssl_train", "ssl_dev"):
        labels |= read_table(raw / split / "text.km")
        samples = read_table(raw / split / "utt2num_samples")
        for utt, length in samples.items():
            found = [int(unit) for unit in labels[utt].split()]
            assert len(found) == (int(length) - 400) // 320 + 1
            assert set(found) <= set(range(UNITS))
    sidecar = json.loads((raw / "ssl_train/text.km.json").read_text())
    assert (sidecar["layer"], sidecar["K"]) == (2, UNITS)
    assert set(read_table(raw / "ssl_train/utt2lang").values()) == {"eng", "cmn", "yue"}
    checkpoints = json.loads((exp / "checkpoints.json").read_text())
    assert {Path(entry["path"]).name for entry in checkpoints.values()} == {
        *("base", "teacher")
    }
    assert (exp / "ssl_stats/valid/speech_shape").is_file()


@pytest.mark.slow
def test_a_damaged_clip_is_skipped_and_listed_and_the_run_goes_on(paper, units):
    with open(paper.root / "dump/raw/skipped_audio.tsv", encoding="utf-8") as handle:
        (row,) = csv.DictReader(handle, delimiter="\t")
    assert row["set"] == "train_cmn" and row["utt_id"].endswith("zh-CN_8")
    assert row["reason"].startswith("truncated")
    assert "train_cmn: 1 of" in units and "skipped_audio.tsv" in units


@pytest.mark.slow
def test_the_hours_are_compared_with_the_paper_s(paper, units):
    languages = json.loads((paper.root / "dump/raw/hours.json").read_text())[
        "languages"
    ]
    for lang, expected in (("yue", 105.072), ("cmn", 341.867), ("eng", 100.555)):
        ours = languages[lang]["hours"]
        assert 0 < ours < 0.1 and languages[lang]["paper_hours"] == expected
        warning = f"{lang}: {ours:.3f} h, {expected - ours:.3f} h (100.0 %) less than"
        assert warning in units
    assert "100 h wanted" in units
    assert set(languages["yue"]["sources"]) == {"commonvoice-yue", "commonvoice-zh-HK"}


@pytest.mark.slow
def test_the_paper_preset_runs_from_checkpoints_to_packages(paper, units):
    log = paper.checked(0, 13)
    for stage in range(7):
        assert f"stage {stage}: " in log and "runs again" not in log
    exp = paper.root / "exp"
    report = json.loads((exp / "ssl_lamer/parameters.json").read_text())
    # 20 experts of rank 12 on both Linears of 4 layers, a router row of 32 for each.
    assert (report["lora"], report["router"]) == (20 * 2 * 12 * (32 + 48), 20 * 32)
    (table,) = exp.rglob("RESULTS.md")
    figures = json.loads(table.with_name("results.json").read_text())["figures"]
    rows = {(f["label"].split("_")[0], f["unit"], f["system"]) for f in figures}
    assert (table.parent / "report.html").is_file()
    units_of = {"eng": "char", "cmn": "pinyin", "yue": "jyutping"}
    for lang, unit in units_of.items():
        assert {(lang, unit, "base"), (lang, unit, "lamer")} <= rows
    packed = {path.stem for path in (exp / "packed").glob("*.zip")}
    assert "ssl_lamer" in packed
    heads = ["lid", *(f"{lang} {unit}" for lang, unit in units_of.items())]
    for head in heads:
        words = {*head.split(), "lamer"}
        assert any(words <= set(name.split("_")) for name in packed), head
    again = paper.checked(0, 13)
    assert again.count("done, nothing changed") == 14


@pytest.mark.slow
def test_the_packed_model_gives_the_features_of_the_experiment(paper):
    import espnet2_lamer

    exp = paper.root / "exp"
    if not (exp / "packed").is_dir():
        paper.checked(0, 13)
    wavs = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 8000)))
    lengths = torch.tensor([8000])
    states = []
    for source in (exp / "ssl_lamer", exp / "packed/ssl_lamer.zip"):
        model = espnet2_lamer.load_model(str(source))
        with torch.no_grad():
            states.append(model.extract_features(wavs.float(), lengths)[0])
    assert len(states[0]) == LAYERS + 1
    for ours, packed in zip(*states, strict=True):
        torch.testing.assert_close(ours, packed)
