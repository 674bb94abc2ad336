"""A tiny base on disk, and encoders and ESPnet models on it."""

import argparse

import pytest
import torch

from tests.tiny_hubert import ARCHITECTURE

UNITS = 6
LAMER = {"allocation": "2,4", "rank": 2}


def _write_base(directory, seed, mask_embedding=True):
    from espnet2_lamer.convert.architecture import build_hubert
    from espnet2_lamer.convert.huggingface import save_huggingface

    torch.manual_seed(seed)
    model = build_hubert(ARCHITECTURE)
    if mask_embedding:
        model.mask_embedding = torch.rand(16)
    save_huggingface(model, directory)
    return str(directory)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Hugging Face directory of a base with a mask embedding."""
    return _write_base(tmp_path_factory.mktemp("hubert") / "base", 0)


@pytest.fixture(scope="session")
def other_base(tmp_path_factory):
    """The same network with other weights and without a mask embedding."""
    return _write_base(tmp_path_factory.mktemp("hubert") / "other", 1, False)


@pytest.fixture
def build_encoder():
    """Return a function that builds a seeded encoder, with random experts."""
    from espnet2_lamer.asr.encoder.lamer_hubert import LamerHubertEncoder

    def build(base=None, lamer=LAMER, fill=True, **options):
        torch.manual_seed(2)
        if base is None:
            options = ARCHITECTURE | options
        encoder = LamerHubertEncoder(
            num_classes=UNITS, base=base, lamer=lamer, final_dim=8, **options
        )
        if fill:
            with torch.no_grad():
                for name, parameter in encoder.named_parameters():
                    if name.endswith("lora_B"):
                        parameter.normal_(std=0.3)
        return encoder

    return build


@pytest.fixture
def build_model(build_encoder):
    """Return a function that puts an encoder into the ESPnet model."""
    from espnet2_lamer.hubert.espnet_model import LamerHubertPretrainModel

    def build(base=None, lamer=LAMER, model_conf=None, **options):
        encoder = build_encoder(base, lamer, **options)
        tokens = [*map(str, range(UNITS)), "<unk>", "<sos/eos>"]
        return LamerHubertPretrainModel(encoder, tokens, **(model_conf or {}))

    return build


@pytest.fixture
def batch():
    """Two utterances of 3200 and 2000 samples: 9 and 6 frames, 7 of them masked."""
    generator = torch.Generator().manual_seed(3)
    text = torch.randint(0, UNITS, (2, 9), generator=generator)
    text[1, 6:] = -1
    return {
        "speech": torch.randn(2, 3200, generator=generator),
        "speech_lengths": torch.tensor([3200, 2000]),
        "text": text,
        "text_lengths": torch.tensor([9, 6]),
        "mask_indices": torch.tensor([[1, 2, 3, 7, 8], [0, 4, -1, -1, -1]]),
    }


@pytest.fixture
def task_args():
    """Return a function that gives parsed-looking arguments of the task."""

    def build(**changes):
        values = {
            "encoder": "lamer_hubert",
            "model": "lamer",
            "num_classes": UNITS,
            "token_list": [*map(str, range(UNITS)), "<unk>", "<sos/eos>"],
            "encoder_conf": {"lamer": LAMER, "final_dim": 8, **ARCHITECTURE},
            "model_conf": {},
        }
        return argparse.Namespace(**{**values, **changes})

    return build
