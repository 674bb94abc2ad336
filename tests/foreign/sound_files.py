"""Sound files of every kind, the doors that take them, and what changes one of them."""

import argparse
import shutil
import zipfile
from types import SimpleNamespace

import numpy as np
import soundfile
import torch
import yaml

import espnet2_lamer
from espnet2_lamer.export.zoo import pack_model
from tests.export.tiny import write_base, write_experiment

#: Every way by which a file or a name from outside comes in, by name. A door gets
#: sound files, an empty folder and a payload, puts the payload where an attacker
#: could, and opens the result as a user would.
DOORS = {}
BEST = "valid.loss_m.best.pth"
ASR = {
    "token_list": ["<blank>", "<unk>", "a", "b", "<sos/eos>"],
    "token_type": "char",
    "bpemodel": None,
    "init": None,
    "input_size": None,
    "frontend": "lamer_upstream",
    "specaug": None,
    "normalize": None,
    "normalize_conf": {},
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


def door(function):
    """Enter a function into :data:`DOORS`."""
    DOORS[function.__name__] = function
    function.named = False
    return function


def named_door(function):
    """As :func:`door`, where the user, their config or table names the file to read."""
    door(function).named = True
    return function


def make_sound_files(root):
    """A base, a pretraining, its zip and adapter, a head's zip, speech, a Whisper."""
    from espnet2.tasks.asr import ASRTask

    from espnet2_lamer.bin.export import main
    from tests.whisper.small_whisper import make_model, save_whisper

    espnet2_lamer.register()
    base = write_base(root / "base")
    write_experiment(root / "exp", base)
    for kind, name in (("zoo", "ssl.zip"), ("adapter", "ssl.safetensors")):
        main(
            [
                *(f"--kind={kind}", "--task=ssl", f"--experiment={root / 'exp'}"),
                f"--output={root / name}",
                *(["--base_name=someone/base"] if kind == "adapter" else []),
            ]
        )
    upstream = espnet2_lamer.load_model(base)
    conf = {"upstream_conf": upstream.architecture(), "layer": 1}
    head = ASR | {"frontend_conf": conf}
    model = ASRTask.build_model(argparse.Namespace(**head))
    (root / "head").mkdir()
    (root / "head" / "config.yaml").write_text(yaml.safe_dump(head))
    torch.save(model.state_dict(), root / "head" / "model.pth")
    pack_model(
        "asr",
        root / "head" / "config.yaml",
        root / "head" / "model.pth",
        root / "asr.zip",
    )
    data = root / "data"
    data.mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, 8000)
    for number in range(4):
        soundfile.write(data / f"u{number}.wav", noise, 16000)
    units = " ".join(["1"] * 24)
    for name, line in (
        ("wav.scp", f"u{{}} {data}/u{{}}.wav"),
        ("text.km", f"u{{}} {units}"),
        ("text", "u{} ab"),
        ("utt2lang", "u{} eng"),
        ("utt2spk", "u{} s{}"),
        ("speech_shape", "u{} 8000"),
        ("text_shape", "u{} 24"),
    ):
        rows = [line.replace("{}", str(number)) for number in range(4)]
        (data / name).write_text("\n".join(rows) + "\n")
    (data / "tokens.txt").write_text("0\n1\n2\n3\n4\n<unk>\n<sos/eos>\n")
    (data / "letters.txt").write_text("\n".join(ASR["token_list"]) + "\n")
    whisper = make_model(save_whisper(root / "whisper.pt"))
    return SimpleNamespace(
        root=root, base=base, data=data, config=head, whisper=whisper
    )


def changed_zip(good, here, name, **members):
    """A sound zip with other content under some names."""
    path = here / name
    with zipfile.ZipFile(good.root / name) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.namelist():
            content = members.pop(member.replace(".", "_"), None)
            new.writestr(member, old.read(member) if content is None else content)
        for member, content in members.items():
            new.writestr(member, content)
    return path


def member(good, name, which):
    with zipfile.ZipFile(good.root / name) as archive:
        return yaml.safe_load(archive.read(which))


def experiment(good, here, payload, weights=True):
    """A sound experiment whose weights, or whose config, are the payload."""
    directory = shutil.copytree(good.root / "exp", here / "exp")
    if weights:
        (directory / BEST).write_bytes(payload.content())
    else:
        config = yaml.safe_load((directory / "config.yaml").read_text())
        (directory / "config.yaml").write_text(payload.in_config(config))
    return directory
