"""Data, models and configurations of section ``stock``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.options import option
from espnet2_lamer.constants import num_frames

RATE = 16000


def _convolutions(channels: int) -> list[list[int]]:
    return [[channels, 10, 5]] + [[channels, 3, 2]] * 4 + [[channels, 2, 2]] * 2


def _architecture(
    channels: int, dim: int, layers: int, heads: int, kernel: int, pre_norm: bool
) -> dict[str, Any]:
    """Options that both encoders understand; dropout off, so that work is equal."""
    return {
        "extractor_mode": "layer_norm" if pre_norm else "group_norm",
        "extractor_conv_bias": pre_norm,
        "extractor_conv_layer_config": _convolutions(channels),
        "encoder_embed_dim": dim,
        "encoder_num_layers": layers,
        "encoder_num_heads": heads,
        "encoder_ff_interm_features": 4 * dim,
        "encoder_pos_conv_kernel": kernel,
        "encoder_pos_conv_groups": min(16, dim // 16),
        "encoder_layer_norm_first": pre_norm,
        "encoder_projection_dropout": 0.0,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_drop": 0.0,
        "mask_prob": 0.8,
        "mask_length": 10,
    }


# HuBERT-Base, and HuBERT-Large's kind in small (pre-norm, LayerNorms in the front end).
SIZES = {
    "tiny": _architecture(8, 16, 4, 2, 8, True) | {"final_dim": 8},
    "small": _architecture(64, 192, 4, 4, 64, True) | {"final_dim": 128},
    "base": _architecture(512, 768, 12, 12, 128, False) | {"final_dim": 256},
}
STOCK = "stock (`torchaudio_hubert`), fp32"
# Changes to our configuration.
OURS = {
    "ours, fp32": {},
    "ours, bf16": {"amp_dtype": "bf16"},
    "ours, frozen backbone + experts, fp32": {
        "lamer": {"allocation": "2,4,6,8", "rank": 12}
    },
    "ours, frozen backbone + experts, bf16": {
        "amp_dtype": "bf16",
        "lamer": {"allocation": "2,4,6,8", "rank": 12},
    },
}


@dataclass(frozen=True)
class Options:
    """Sizes."""

    sizes: tuple[str, ...] = option(("small", "base"), f"of {', '.join(SIZES)}")
    utterances: int = option(24, "training utterances")
    shortest: float = option(2.0, "seconds of the shortest utterance")
    longest: float = option(10.0, "seconds of the longest utterance")
    bins: float = option(20.0, "seconds of audio per update (batch_bins)")
    units: int = option(100, "classes K")
    rounds: int = option(2, "times that every form trains")
    fresh: int = option(1, "1: a new process per training; 0: in this one, no RSS")


@dataclass(frozen=True)
class Corpus:
    """Where the data is, and samples per training utterance."""

    directory: Path
    lengths: dict[str, int]


def write_corpus(directory: Path, options: Options) -> Corpus:
    """Write noise and random units: ``train`` and two utterances for ``valid``."""
    generator = np.random.default_rng(0)
    spread = np.linspace(options.shortest, options.longest, options.utterances)
    lengths = {}
    for split, seconds in (("train", spread), ("valid", [options.shortest] * 2)):
        folder = directory / split
        folder.mkdir(parents=True)
        lines: dict[str, list[str]] = {"wav.scp": [], "text": [], "shape": []}
        for number, duration in enumerate(seconds):
            name, samples = f"{split}{number:04d}", int(duration * RATE)
            wav = 0.1 * generator.standard_normal(samples)
            soundfile.write(folder / f"{name}.wav", wav, RATE)
            units = generator.integers(options.units, size=num_frames(samples))
            lines["wav.scp"].append(f"{name} {folder / name}.wav")
            lines["text"].append(f"{name} {' '.join(map(str, units))}")
            lines["shape"].append(f"{name} {samples}")
            if split == "train":
                lengths[name] = samples
        for file, content in lines.items():
            (folder / file).write_text("\n".join(content) + "\n", encoding="utf-8")
    tokens = [*map(str, range(options.units)), "<unk>", "<sos/eos>"]
    (directory / "tokens.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return Corpus(directory, lengths)


def stock_batches(corpus: Corpus, bins: int) -> list[tuple[str, ...]]:
    """Batches of one epoch as stock training makes them."""
    from espnet2.samplers.build_batch_sampler import build_batch_sampler

    sampler = build_batch_sampler(
        type="numel",
        batch_size=0,
        batch_bins=bins,
        shape_files=[str(corpus.directory / "train" / "shape")],
        sort_in_batch="descending",
        sort_batch="descending",
    )
    return list(sampler)


def our_bins(corpus: Corpus, bins: int) -> int:
    """Smallest batch size (a second apart) with as few updates as stock training.

    ESPnet's sampler goes above ``batch_bins`` by one utterance, ours stays below; with
    the same number an update of ours would hold less audio.
    """
    from espnet2_lamer.train.batching import CollateOptions, make_batches

    wanted = len(stock_batches(corpus, bins))
    crop, bucket = CollateOptions().max_sample_size, CollateOptions().bucket_samples
    while True:
        generator = np.random.default_rng(0)
        found = make_batches(corpus.lengths, bins, crop, bucket, generator, True)
        if len(found) <= wanted:
            return bins
        bins += RATE


def config(form: str, size: str, corpus: Corpus, options: Options) -> dict[str, Any]:
    """ESPnet's configuration of one form: the same but for encoder and model."""
    bins = int(options.bins * RATE)
    bins = bins if form == STOCK else our_bins(corpus, bins)
    common = {
        "num_classes": options.units,
        "token_type": "word",
        "optim": "adamw",
        "optim_conf": {"lr": 1e-4, "betas": [0.9, 0.98], "eps": 1e-6},
        "grad_clip": 10.0,
        "batch_bins": bins,
        "valid_batch_bins": bins,
        # The first epoch warms up, the second counts; each update is logged.
        "max_epoch": 2,
        "log_interval": 1,
        "num_workers": 0,
        "num_att_plot": 0,
        "keep_nbest_models": 1,
        "best_model_criterion": [["valid", "loss", "min"]],
        "use_matplotlib": False,
        "use_tensorboard": False,
        "seed": 0,
    }
    if form == STOCK:
        return common | {
            "encoder": "torchaudio_hubert",
            "encoder_conf": SIZES[size] | {"feature_grad_mult": None},
            "model": "torchaudio",
            "input_size": 1,
            "frontend": None,
            "normalize": None,
            "specaug": None,
            "batch_type": "numel",
        }
    changes = OURS[form]
    # The stock encoder does not normalise waveforms; the model is to be the same.
    encoder = SIZES[size] | {"normalize_waveform": False, "lamer": changes.get("lamer")}
    return common | {
        "encoder_conf": encoder,
        "amp_dtype": changes.get("amp_dtype", "none"),
    }


def trained_audio(form: str, corpus: Corpus, options: Options) -> float:
    """Seconds of audio that one epoch uses.

    Stock training cuts every batch to its shortest utterance (ESPnet's default,
    ``pad: false``); ours cuts utterances at the crop length and pads.
    """
    from espnet2_lamer.train.batching import CollateOptions

    lengths = corpus.lengths
    if form == STOCK:
        batches = stock_batches(corpus, int(options.bins * RATE))
        return sum(len(b) * min(lengths[name] for name in b) for b in batches) / RATE
    crop = CollateOptions().max_sample_size
    return sum(min(length, crop) for length in lengths.values()) / RATE
