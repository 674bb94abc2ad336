"""Published models in a fresh process: another directory, no network, nothing left."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import espnet2_lamer
from espnet2_lamer.tasks.pretrained import as_upstream
from tests.export.tiny import same, speech, states_of, write_base, write_experiment

LETTERS = ["<blank>", "<unk>", "A", "B", "C", "D", "<space>", "<sos/eos>"]
HEADS = {
    "char": {"token_type": "char", "token_list": LETTERS},
    "bpe": {"token_type": "bpe"},
    "lid": {
        "token_type": "word",
        "token_list": ["<blank>", "<unk>", "[cmn]", "[eng]", "[yue]", "<sos/eos>"],
    },
}
HEAD = {
    "bpemodel": None,
    "init": None,
    "input_size": None,
    "frontend": "lamer_upstream",
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
        "input_layer": "linear",
    },
    "postencoder": None,
    "decoder": None,
    "ctc_conf": {},
    "model": "espnet",
    "model_conf": {"ctc_weight": 1.0},
}


def train_pieces(directory):
    """Train a SentencePiece model and return the token list of a head on it."""
    import sentencepiece

    text = directory / "text"
    text.write_text("GOOD DAY TO YOU ALL\nA GOOD TEXT\nYOU READ IT ALL DAY\n" * 3)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(directory / "bpe"),
        vocab_size=24,
        model_type="bpe",
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=f"{directory}/bpe.model")
    words = [pieces.id_to_piece(i) for i in range(3, len(pieces))]
    return ["<blank>", "<unk>", *words, "<sos/eos>"]


def write_head(directory, upstream, layer, **changes):
    """Write ``final/`` of a head that babbles: its random output layer is loud."""
    from espnet2.tasks.asr import ASRTask

    config = HEAD | changes
    config["frontend_conf"] = {
        "upstream_conf": upstream.architecture(),
        "layer": layer,
    }
    torch.manual_seed(1)
    model = ASRTask.build_model(argparse.Namespace(**config)).eval()
    model.frontend.upstream.load_state_dict(upstream.state_dict())
    with torch.no_grad():
        model.ctc.ctc_lo.weight.normal_(std=3.0)
    final = directory / "final"
    final.mkdir(parents=True, exist_ok=True)
    (final / "config.yaml").write_text(
        yaml.safe_dump(config, allow_unicode=True), encoding="utf-8"
    )
    torch.save(model.state_dict(), final / "model.pth")
    return final


def texts_of(final, pieces):
    """What the head writes and encodes before it is packed."""
    from espnet2.bin.asr_inference import Speech2Text

    model = Speech2Text(
        str(final / "config.yaml"),
        str(final / "model.pth"),
        bpemodel=pieces,
        beam_size=1,
        ctc_weight=1.0,
    )
    wavs, lengths = speech()
    with torch.no_grad():
        encoded, _ = model.asr_model.encode(wavs, lengths)
    counts = zip(wavs, lengths.tolist(), strict=True)
    return [model(wav[:count])[0][0] for wav, count in counts], encoded


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Export everything, remove the sources, and load it all in one fresh process."""
    from espnet2_lamer.bin.export import main

    espnet2_lamer.register()
    root = tmp_path_factory.mktemp("doors")
    published, sources = root / "published", root / "sources"
    for directory in (published, sources):
        directory.mkdir()
    base = write_base(sources / "base")
    expected, upstream = {}, None
    for balance in ("loss", "bias"):
        experiment = sources / f"ssl_{balance}"
        upstream = as_upstream(write_experiment(experiment, base, balance=balance))
        expected[balance] = states_of(upstream)
        for kind, suffix in (("zoo", ".zip"), ("adapter", ".safetensors")):
            main(
                [
                    f"--kind={kind}",
                    "--task=ssl",
                    f"--experiment={experiment}",
                    f"--output={published / experiment.name}{suffix}",
                ]
            )
    for head, changes in HEADS.items():
        final = sources / head / "final"
        pieces = None
        if head == "bpe":
            final.mkdir(parents=True)
            changes = changes | {"token_list": train_pieces(final)}
            pieces = str(final / "bpe.model")
            changes["bpemodel"] = pieces
        layer = 1 if head == "lid" else "all"
        write_head(sources / head, upstream, layer, **changes)
        expected[head] = texts_of(final, pieces)
        options = [f"--option={pieces}"] if pieces else []
        main(
            [
                f"--experiment={sources / head}",
                f"--output={published / head}.zip",
                *options,
            ]
        )
    wavs, lengths = speech()
    save_file({"wavs": wavs, "lengths": lengths}, published / "speech.safetensors")
    shutil.copytree(base, published / "base")
    shutil.rmtree(sources)
    elsewhere = root / "elsewhere"
    elsewhere.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("open_doors.py"), published],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return published, elsewhere, expected


@pytest.mark.parametrize("balance", ["loss", "bias"])
@pytest.mark.parametrize("door", ["zip", "adapter"])
def test_every_state_is_exact_through_load_model(opened, door, balance):
    _, here, expected = opened
    assert same(load_file(here / f"{door}_{balance}.safetensors"), expected[balance])


@pytest.mark.parametrize("balance", ["loss", "bias"])
def test_every_state_is_exact_through_the_model_zoo_and_espnets_own_task(
    opened, balance
):
    _, here, expected = opened
    found = load_file(here / f"espnet_{balance}.safetensors")
    # torchaudio's list begins at 1, and its last state has no final LayerNorm.
    assert sorted(found) == ["batch.1", "batch.2", "single.1", "single.2"]
    for kind in ("batch", "single"):
        assert torch.equal(found[f"{kind}.1"], expected[balance][f"{kind}.1"])
    upstream = espnet2_lamer.load_model(opened[0] / f"ssl_{balance}.zip")
    upstream.final_norm = False
    raw = states_of(upstream)
    for kind in ("batch", "single"):
        assert torch.equal(found[f"{kind}.2"], raw[f"{kind}.2"])


@pytest.mark.parametrize("head", HEADS)
def test_heads_write_the_same_text_through_the_model_zoo_and_speech2text(opened, head):
    _, here, expected = opened
    texts, encoded = expected[head]
    assert any(texts), "the head must say something, or nothing is compared"
    assert json.loads((here / "texts.json").read_text())[head] == texts
    assert torch.equal(load_file(here / f"{head}.safetensors")["encoded"], encoded)


def test_the_zips_are_whole_and_name_no_path(opened):
    published, _, _ = opened
    for path in published.glob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            assert {"README.md", "config.yaml", "meta.yaml", "model.pth"} <= names
            config = yaml.safe_load(archive.read("config.yaml"))
            assert isinstance(config["token_list"], list)
            assert ("bpe.model" in names) == (path.stem == "bpe")
            for name in ("README.md", "config.yaml", "meta.yaml"):
                assert str(published.parent).encode() not in archive.read(name), path
