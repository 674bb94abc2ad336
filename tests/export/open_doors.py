"""Run by test_doors in a fresh process: load what was published, without a network.

Usage: open_doors.py PUBLISHED. The working directory is empty; results go there.
"""

import json
import os
import socket
import sys
from pathlib import Path


def refuse(self, address, *args):
    """Stand in for a network."""
    raise RuntimeError(f"reached for {address!r}; doors open offline")


# asyncio and the like may use sockets of this machine; nothing here connects to one.
socket.socket.connect = socket.socket.connect_ex = refuse

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import espnet2_lamer  # noqa: E402

PUBLISHED = Path(sys.argv[1])


def states(model, wavs, lengths):
    """Every state, for the padded batch and for its first utterance alone."""
    batch, frames = model.extract_features(wavs, lengths)
    single, _ = model.extract_features(wavs[:1, : lengths[0]])
    found = {f"batch.{k}": state for k, state in enumerate(batch)}
    found |= {f"single.{k}": state for k, state in enumerate(single)}
    return found | {"frames": frames}


def main():
    """Write ``NAME.safetensors`` per pretrained model, ``texts.json`` of the heads."""
    speech = load_file(PUBLISHED / "speech.safetensors")
    wavs, lengths = speech["wavs"], speech["lengths"]
    for balance in ("loss", "bias"):
        for door, source, base in (
            ("zip", f"ssl_{balance}.zip", None),
            ("adapter", f"ssl_{balance}.safetensors", PUBLISHED / "base"),
        ):
            model = espnet2_lamer.load_model(PUBLISHED / source, base=base)
            save_file(states(model, wavs, lengths), f"{door}_{balance}.safetensors")

    espnet2_lamer.register()
    from espnet2.bin.asr_inference import Speech2Text
    from espnet2.tasks.hubert import HubertTask
    from espnet_model_zoo.downloader import ModelDownloader

    zoo = ModelDownloader("cache")
    for balance in ("loss", "bias"):
        files = zoo.download_and_unpack(str(PUBLISHED / f"ssl_{balance}.zip"))
        model, _ = HubertTask.build_model_from_file(
            files["ssl_train_config"], files["ssl_model_file"]
        )
        wav2vec2 = model.eval().encoder.hubert_pretrain_model.wav2vec2
        with torch.no_grad():
            batch, _ = wav2vec2.extract_features(wavs, lengths)
            single, _ = wav2vec2.extract_features(wavs[:1, : lengths[0]])
        found = {f"batch.{k}": state for k, state in enumerate(batch, 1)}
        found |= {f"single.{k}": state for k, state in enumerate(single, 1)}
        save_file(found, f"espnet_{balance}.safetensors")

    texts = {}
    for head in ("char", "bpe", "lid"):
        files = zoo.download_and_unpack(str(PUBLISHED / f"{head}.zip"))
        model = Speech2Text(**files, beam_size=1, ctc_weight=1.0)
        texts[head] = [
            model(wav[:count])[0][0]
            for wav, count in zip(wavs, lengths.tolist(), strict=True)
        ]
        with torch.no_grad():
            encoded, frames = model.asr_model.encode(wavs, lengths)
        save_file({"encoded": encoded, "frames": frames}, f"{head}.safetensors")
    Path("texts.json").write_text(json.dumps(texts), encoding="utf-8")


if __name__ == "__main__":
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    main()
