"""A training of seconds in a forked process, for tests that kill it.

The importing process must have loaded ESPnet (which takes longer than the training)
and must not have run autograd: children inherit both.
"""

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import sklearn.linear_model  # noqa: F401 - the monitor's probe imports it
import soundfile
import torch
import yaml

from espnet2_lamer.tasks.hubert import LamerHubertTask
from espnet2_lamer.train.checkpoint import CheckpointStore

UNITS = 5
CONFIG = {
    "num_classes": UNITS,
    "encoder_conf": {
        "extractor_conv_layer_config": [[8, 10, 5]] + [[8, 3, 2]] * 4 + [[8, 2, 2]] * 2,
        "encoder_embed_dim": 16,
        "encoder_pos_conv_kernel": 8,
        "encoder_pos_conv_groups": 2,
        "encoder_num_layers": 2,
        "encoder_num_heads": 2,
        "encoder_ff_interm_features": 32,
        # Random numbers in every forward pass: resuming must restore their source.
        "encoder_dropout": 0.1,
        "encoder_ff_interm_dropout": 0.1,
        "final_dim": 8,
        "lamer": {"allocation": "2,4", "rank": 2, "balance": "bias"},
        "mask_length": 3,
    },
    "optim": "adamw",
    "optim_conf": {"lr": 0.01},
    "scheduler": "polynomialdecaylr",
    "scheduler_conf": {"warmup_steps": 5, "total_steps": 100},
    "batch_bins": 24000,
    "collate_fn_conf": {"max_sample_size": 8000, "bucket_samples": 1600},
    "accum_grad": 2,
    "max_epoch": 3,
    "checkpoint_interval": 2,
    "log_interval": 5,
    "num_workers": 0,
    "keep_nbest_models": 2,
    "best_model_criterion": [["valid", "loss_m", "min"]],
    "langs": ["cmn", "yue"],
    "monitor_utts": 4,
    "norms_interval": 3,
    "use_tensorboard": False,
    "use_matplotlib": False,
}


def make_corpus(directory: Path, count: int = 24) -> None:
    """Noise with random units and phones: wav.scp, text.km, shapes and tokens."""
    rng = np.random.default_rng(0)
    directory.mkdir(parents=True)
    scp, units, speech_shape, text_shape, langs = [], [], [], [], []
    phones = []
    for number in range(count):
        name, samples = f"utt{number:02d}", int(rng.integers(4000, 12000))
        path = directory / f"{name}.wav"
        soundfile.write(path, rng.normal(0, 0.1, samples), 16000)
        frames = (samples - 400) // 320 + 1
        scp.append(f"{name} {path}")
        labels = " ".join(map(str, rng.integers(UNITS, size=frames)))
        units.append(f"{name} {labels}")
        speech_shape.append(f"{name} {samples}")
        text_shape.append(f"{name} {frames}")
        langs.append(f"{name} {number % 2}")
        phones += [f"{name} 1 {t / 10} 0.1 {'aei'[t % 3]}" for t in range(frames // 5)]
    for name, lines in (
        ("wav.scp", scp),
        ("text.km", units),
        ("speech_shape", speech_shape),
        ("text_shape", text_shape),
        ("utt2langid", langs),
        ("phones.ctm", phones),
        ("tokens.txt", [*map(str, range(UNITS)), "<unk>", "<sos/eos>"]),
    ):
        (directory / name).write_text("\n".join(lines) + "\n")


def command(corpus: Path, output: Path, **changes: object) -> list[str]:
    """Options of ESPnet's command line, through a config file."""
    output.mkdir(parents=True, exist_ok=True)
    config = output / "train.yaml"
    config.write_text(yaml.safe_dump(CONFIG | changes))
    options = ["--config", str(config), "--output_dir", str(output), "--resume", "true"]
    options += ["--token_list", str(corpus / "tokens.txt")]
    for part in ("train", "valid"):
        options += [
            f"--{part}_data_path_and_name_and_type",
            f"{corpus / 'wav.scp'},speech,sound",
            f"--{part}_data_path_and_name_and_type",
            f"{corpus / 'text.km'},text,text",
            f"--{part}_data_path_and_name_and_type",
            f"{corpus / 'utt2langid'},lang,text_int",
            f"--{part}_shape_file",
            str(corpus / "speech_shape"),
            f"--{part}_shape_file",
            str(corpus / "text_shape"),
        ]
    return options


def start(options: list[str], log: Path, before=None) -> int:
    """Fork a training; its messages are appended to ``log``. Returns the child's id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        # Whoever runs the tests in the background has it ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(log, "a", encoding="utf-8") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        torch.set_num_threads(1)
        logging.root.handlers.clear()
        logging.basicConfig(level=logging.INFO)
        if before is not None:
            before()
        LamerHubertTask.main(cmd=options)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - the parent reads the log
        logging.exception("%s", error)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """Exit code of a child; -N where signal N ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_after(pid: int, seconds: float, number: int = signal.SIGKILL) -> int:
    """Send a signal some time after the start, unless the child has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, number)
    return wait(pid)


def outcome(output: Path) -> dict:
    """Final weights, optimizer and every figure that is not a time."""
    state = CheckpointStore(output / "checkpoints").load()
    figures = {
        f"{epoch}.{part}.{key}": value
        for epoch, parts in state["reporter"]["stats"].items()
        for part, stats in parts.items()
        for key, value in stats.items()
        if "time" not in key
    }
    best = torch.load(
        output / "valid.loss_m.ave.pth", map_location="cpu", weights_only=True
    )
    return {
        "forgetting": forgetting(output),
        "norms": norms(output),
        "model": state["model"],
        "best": best,
        "optimizer": state["optimizers"][0]["state"],
        "figures": figures,
        "updates": state["updates"],
    }


def forgetting(output: Path) -> dict[str, str]:
    """Lines of the monitor by number, without their times."""
    path = output / "forgetting.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return {
        str(number): json.dumps({**json.loads(line), "seconds": 0})
        for number, line in enumerate(lines)
    }


def norms(output: Path) -> str:
    """Lines of the norms, as they are in the file."""
    path = output / "norms.jsonl"
    return path.read_text() if path.is_file() else ""


def differences(one: dict, two: dict, path: str = "") -> list[str]:
    """Names of everything that is not equal to the bit."""
    if isinstance(one, dict):
        if one.keys() != two.keys():
            return [f"{path}: other keys {sorted(map(str, one.keys() ^ two.keys()))}"]
        return [d for k in one for d in differences(one[k], two[k], f"{path}/{k}")]
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, two) else [path]
    same = one == two or (one != one and two != two)
    return [] if same else [f"{path}: {one} {two}"]
