"""A tiny recogniser, a tiny language head, and the demo's server with both."""

import argparse
import io
import threading

import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet2_lamer.demo.listening import Listener
from espnet2_lamer.demo.server import DemoServer
from espnet2_lamer.export.zoo import pack_model
from tests.export.family import build

SHARED = {
    **dict.fromkeys(("bpemodel", "init", "input_size", "specaug", "preencoder")),
    **dict.fromkeys(("postencoder", "decoder", "normalize")),
    **{f"{part}_conf": {} for part in ("specaug", "normalize", "preencoder", "ctc")},
    **{f"{part}_conf": {} for part in ("postencoder", "decoder", "joint_net")},
    "frontend": "lamer_upstream",
    "encoder": "transformer",
    "encoder_conf": {
        "output_size": 8,
        "attention_heads": 2,
        "linear_units": 8,
        "num_blocks": 1,
        "input_layer": "linear",
    },
    "model": "espnet",
    "model_conf": {"ctc_weight": 1.0},
}
LETTERS = ["<blank>", "<unk>", "a", "b", "<space>", "<sos/eos>"]
TAGS = ["<blank>", "<unk>", "[cmn]", "[eng]", "<sos/eos>"]


def write_head(folder, upstream, tokens):
    """Write what a finished head is, untrained."""
    import espnet2_lamer
    from espnet2_lamer.tasks.asr import LamerASRTask

    espnet2_lamer.register()
    config = SHARED | {
        "token_list": tokens,
        "token_type": "word" if tokens is TAGS else "char",
        "frontend_conf": {"upstream_conf": upstream.architecture(), "layer": 1},
    }
    torch.manual_seed(1)
    model = LamerASRTask.build_model(argparse.Namespace(**config)).eval()
    model.frontend.upstream.load_state_dict(upstream.state_dict())
    with torch.no_grad():
        model.ctc.ctc_lo.weight.mul_(20)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(model.state_dict(), folder / "model.pth")


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A packed recogniser, and a language head as its experiment keeps it."""
    root = tmp_path_factory.mktemp("demo")
    upstream = build({"allocation": "2,4", "rank": 2})
    write_head(root / "asr_tiny" / "final", upstream, LETTERS)
    write_head(root / "lid_tiny" / "final", upstream, TAGS)
    final = root / "asr_tiny" / "final"
    archive = root / "asr_tiny.zip"
    pack_model("asr", final / "config.yaml", final / "model.pth", archive)
    return archive, root / "lid_tiny", upstream


@pytest.fixture(scope="session")
def server(models):
    """The demo, listening."""
    listener = Listener([str(models[0]), str(models[1])], max_seconds=5.0)
    server = DemoServer(listener)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="session")
def wave():
    """Two seconds of noise that comes and goes, 16 kHz."""
    samples = np.random.default_rng(0).standard_normal(32000)
    loud = 0.02 + 0.1 * (np.sin(np.arange(32000) / 3000) > 0)
    return (loud * samples).astype(np.float32)


@pytest.fixture(scope="session")
def encoded(wave):
    """The same as bytes of a file, by format."""
    found = {}
    for form in ("WAV", "FLAC", "OGG", "MP3"):
        buffer = io.BytesIO()
        soundfile.write(buffer, wave, 16000, format=form)
        found[form] = buffer.getvalue()
    return found
