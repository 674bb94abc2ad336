"""Tiny models to publish: a base, pretrainings on it, speech, and their states."""

import argparse

import torch
import yaml

from tests.tiny_hubert import ARCHITECTURE

UNITS = 5
TOKENS = [*map(str, range(UNITS)), "<unk>", "<sos/eos>"]
LENGTHS = torch.tensor([3200, 2000, 401])


def write_base(directory, seed=0, **changes):
    """Write a base as a Hugging Face directory, with a mask embedding."""
    from espnet2_lamer.convert.architecture import build_hubert
    from espnet2_lamer.convert.huggingface import save_huggingface

    torch.manual_seed(seed)
    base = build_hubert(ARCHITECTURE | changes)
    base.mask_embedding = torch.rand(16)
    save_huggingface(base, directory)
    return directory


def write_experiment(directory, base, **lamer):
    """Write what training leaves (config and best model), and return the model."""
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    config = {
        "encoder": "lamer_hubert",
        "model": "lamer",
        "num_classes": UNITS,
        "token_list": TOKENS,
        "encoder_conf": {
            "base": str(base),
            "lamer": {"allocation": "2,4", "rank": 2} | lamer,
            "final_dim": 8,
        },
        "model_conf": {"logit_temp": 0.2},
        "best_model_criterion": [["valid", "loss_m", "min"]],
        "output_dir": str(directory),
        "input_size": 1,
        **dict.fromkeys(("frontend", "specaug", "normalize", "preencoder", "init")),
        "frontend_conf": {},
    }
    model = LamerHubertTask.build_model(argparse.Namespace(**config)).eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("lora_B", "selection_bias", "load")) or "router" in name:
                tensor.normal_()
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(model.state_dict(), directory / "valid.loss_m.best.pth")
    return model


def speech():
    """Three utterances of different lengths; the padding holds zeros."""
    wavs = torch.randn(3, 3200, generator=torch.Generator().manual_seed(1))
    return wavs.masked_fill(torch.arange(3200) >= LENGTHS[:, None], 0.0), LENGTHS


def states_of(model):
    """Every state of the padded batch and of one utterance alone, by a name each.

    Args:
        model: What ``load_model`` returns.
    """
    wavs, lengths = speech()
    batch, frames = model.extract_features(wavs, lengths)
    single, _ = model.extract_features(wavs[:1, : lengths[0]])
    found = {f"batch.{k}": state for k, state in enumerate(batch)}
    found |= {f"single.{k}": state for k, state in enumerate(single)}
    return found | {"frames": frames}


def same(found, expected):
    """Whether two results of :func:`states_of` are equal to the bit."""
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], value) for name, value in expected.items()
    )
