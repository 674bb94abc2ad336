"""Doors of commands that read a model, audio or texts, and write what they found."""

import shutil

from tests.foreign.command_lines import command
from tests.foreign.sound_files import changed_zip, door, experiment, member, named_door


@door
def export_zoo(good, here, payload):
    directory = experiment(good, here, payload)
    command(
        "export",
        *("--task=ssl", f"--experiment={directory}", f"--output={here / 'm.zip'}"),
    )


@door
def export_head(good, here, payload):
    directory = shutil.copytree(good.root / "head", here / "head")
    (directory / "model.pth").write_bytes(payload.content())
    command("export", f"--experiment={directory}", f"--output={here / 'm.zip'}")


@door
def export_adapter(good, here, payload):
    directory = experiment(good, here, payload)
    output = here / "a.safetensors"
    command(
        "export", "--kind=adapter", f"--experiment={directory}", f"--output={output}"
    )


@door
def export_s3prl(good, here, payload):
    path = changed_zip(good, here, "ssl.zip", model_pth=payload.content())
    command("export", "--kind=s3prl", f"--experiment={path}", f"--output={here / 'o'}")


@door
def export_hugging_face(good, here, payload):
    source = f"s3prl:hubert_custom:{payload.text()}"
    command("export", "--kind=hf", f"--experiment={source}", f"--output={here / 'o'}")


@door
def export_dense(good, here, payload):
    config = payload.in_config(member(good, "ssl.zip", "config.yaml"))
    path = changed_zip(good, here, "ssl.zip", config_yaml=config)
    command(
        "export",
        *("--kind=dense", f"--experiment={path}", f"--output={here / 'o'}"),
        *("--language=eng", f"--wav_scp={good.data / 'wav.scp'}"),
    )


@named_door
def analyze_model(good, here, payload):
    command(
        "analyze",
        *("--model", payload.text(), "--data", good.data, "--output", here / "out"),
        *("--max_utts=4", "--layers=1"),
    )


@named_door
def analyze_data(good, here, payload):
    data = shutil.copytree(good.data, here / "data")
    (data / "wav.scp").write_text(
        "".join(f"u{number} {payload.text()}\n" for number in range(4))
    )
    command(
        "analyze",
        *("--model", good.base, "--data", data, "--output", here / "out"),
        "--max_utts=4",
    )


@door
def extract_model(good, here, payload):
    command(
        "extract",
        *("--model", f"s3prl:hubert_local:{payload.text()}", "--layer=1"),
        *("--wav_scp", good.data / "wav.scp", "--output", here / "f.npz"),
    )


@named_door
def extract_wav_scp(good, here, payload):
    (here / "wav.scp").write_text(f"u0 {payload.text()}\n")
    command(
        "extract",
        *("--model", good.base, "--layer=1", "--wav_scp", here / "wav.scp"),
        *("--output", here / "f.npz"),
    )


@door
def score_texts(good, here, payload):
    for name in ("ref", "hyp"):
        (here / name).write_text(f"u0 {payload.document().strip()}\n")
    command(
        "score",
        *("--ref", here / "ref", "--hyp", here / "hyp", "--unit=char"),
        *("--json", here / "score.json"),
    )
