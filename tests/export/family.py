"""Tiny models in every shape of the family, and a process that knows nothing of us."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.convert.huggingface import save_huggingface
from espnet2_lamer.layers import LamerConfig, add_lamer
from tests.tiny_hubert import ARCHITECTURE

GROUP_NORM = {
    "extractor_mode": "group_norm",
    "extractor_conv_bias": False,
    "encoder_layer_norm_first": False,
    "normalize_waveform": False,
}
BIAS = {"allocation": "2,4", "rank": 2, "balance": "bias"}
LENGTHS = (3200, 2000, 400)


def randomise(model):
    """Give every tensor something to say, zeros of LoRA and of the bias included."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.add_(0.2 * torch.randn_like(tensor))
            elif "lora" in name or "router" in name:
                tensor.normal_(std=0.5)


def build(lamer=None, final_norm=True, seed=0, mask_embedding=True, **changes):
    """Return a model as ``load_model`` does."""
    torch.manual_seed(seed)
    model = build_hubert(ARCHITECTURE | changes)
    if mask_embedding:
        model.mask_embedding = torch.randn(model.architecture["encoder_embed_dim"])
    if lamer is not None:
        add_lamer(model, LamerConfig(**lamer))
    randomise(model)
    return Upstream(model, lamer, final_norm)


def speech(seed=1):
    """Return quiet waveforms with an offset, where normalisation shows."""
    generator = torch.Generator().manual_seed(seed)
    return [0.01 * torch.randn(n, generator=generator) + 0.02 for n in LENGTHS]


def padded(waves):
    """Return a zero-padded batch and its lengths."""
    lengths = torch.tensor([len(wave) for wave in waves])
    return torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), lengths


def write_experiment(root: Path, lamer=BIAS, final_norm=True, **changes):
    """Write a base and what a continual pretraining on it leaves; return the latter."""
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    base = build(seed=2, **changes).wav2vec2
    save_huggingface(base, root / "base")
    config = {
        "encoder": "lamer_hubert",
        "model": "lamer",
        "num_classes": 3,
        "token_list": ["0", "1", "2", "<unk>", "<sos/eos>"],
        # What ESPnet's own task reads.
        "input_size": 1,
        "frontend_conf": {},
        "specaug": None,
        "normalize": None,
        "init": None,
        "output_dir": str(root / "exp"),
        "encoder_conf": {
            "base": str(root / "base"),
            "lamer": lamer,
            "final_dim": 8,
            "final_norm": final_norm,
        },
        "model_conf": {},
        "best_model_criterion": [["valid", "loss", "min"]],
    }
    torch.manual_seed(3)
    model = LamerHubertTask.build_model(argparse.Namespace(**config)).eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("lora_B", "routers.ffn.weight", "selection_bias")):
                tensor.normal_()
    directory = root / "exp"
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(model.state_dict(), directory / "valid.loss.best.pth")
    return directory


# Neither the network nor, unless wanted, anything of this project.
_ALONE = """
import socket, sys

def _offline(*args, **kwargs):
    raise OSError("this process has no network")

socket.socket.connect = socket.getaddrinfo = _offline
for _name in {blocked}:
    sys.modules[_name] = None
"""


def fresh_process(code: str, directory: Path, blocked=(), path=(), **values):
    """Run ``code`` in a new process in ``directory``; the network is off.

    Args:
        code: Python. Finds ``values`` as the dictionary ``given``, may set ``answer``.
        directory: Where it runs.
        blocked: Packages that it cannot import.
        path: Directories in front of ``sys.path``.
        values: Plain values.

    Returns:
        ``answer``.
    """
    script = _ALONE.format(blocked=list(blocked))
    script += f"sys.path[:0] = {[str(p) for p in path]}\n"
    script += "import json\ngiven = json.loads(sys.argv[1])\nanswer = None\n"
    script += code + "\nprint('\\n' + json.dumps(answer))\n"
    environment = os.environ | {"HOME": str(directory), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(values)],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.rsplit("\n", 2)[-2])
