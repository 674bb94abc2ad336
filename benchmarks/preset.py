"""A training of a config: its model, its optimizer and batches of noise."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from benchmarks.machine import ROOT
from espnet2_lamer.constants import SAMPLE_RATE, num_frames
from espnet2_lamer.errors import RecipeError

PAPER = "conf/train_ssl_lamer.yaml"


def read_preset(
    config: str, units: int, layers: int = 0, width: int = 0, ngpu: int = 1
) -> argparse.Namespace:
    """Read a training config as ``bin.hubert_train`` does, with a made-up token list.

    ``layers`` and ``width``, where they are not 0, make the same kind of network
    smaller; ``amp_dtype: auto`` becomes bf16, as on GPUs of today, with ``ngpu`` above
    0.

    Raises:
        RecipeError: There is no such config.
    """
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    path = Path(config) if Path(config).is_absolute() else ROOT / config
    if not path.is_file():
        raise RecipeError(f"{path}: file not found, expected a training config")
    command = ["--config", str(path), "--num_classes", str(units)]
    args = LamerHubertTask.get_parser().parse_args([*command, "--ngpu", str(ngpu)])
    args.token_list = [*map(str, range(units)), "<unk>", "<sos/eos>"]
    if args.amp_dtype == "auto" and ngpu:
        args.amp_dtype = "bf16"
    args.encoder_conf |= smaller(layers, width)
    return args


def smaller(layers: int, width: int) -> dict[str, Any]:
    """Fields of ``encoder_conf`` that make a network smaller; 0 leaves a size."""
    conf: dict[str, Any] = {}
    if layers:
        conf["encoder_num_layers"] = layers
    if width:
        channels = max(width // 2, 4)
        conf |= {
            "encoder_embed_dim": width,
            "encoder_ff_interm_features": 4 * width,
            "encoder_num_heads": max(width // 16, 1),
            "encoder_pos_conv_groups": 4,
            "final_dim": width,
            "extractor_conv_layer_config": [[channels, 10, 5]]
            + [[channels, 3, 2]] * 4
            + [[channels, 2, 2]] * 2,
        }
    return conf


def noise(lengths: list[int], units: int) -> list[tuple[str, dict[str, np.ndarray]]]:
    """Utterances of noise, lengths in samples, with random units."""
    generator = np.random.default_rng(0)
    return [
        (
            f"utt{number:04d}",
            {
                "speech": 0.1 * generator.standard_normal(samples, np.float32),
                "text": generator.integers(units, size=num_frames(samples)),
            },
        )
        for number, samples in enumerate(lengths)
    ]


def row_lengths(seconds: float, crop: int) -> list[int]:
    """Samples of rows that take ``seconds`` together, padding included.

    As few equal rows as the crop length allows; the last of every four is 6 % shorter
    than its row, as lengths within a bucket differ.
    """
    total = int(seconds * SAMPLE_RATE)
    rows = -(-total // crop)
    longest = total // rows
    return [longest - (longest // 16 if row % 4 == 3 else 0) for row in range(rows)]


def collated(args: argparse.Namespace, lengths: list[int]) -> dict[str, Tensor]:
    """Collate utterances of noise as training does."""
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    collate = LamerHubertTask.build_collate_fn(args, train=True)
    _, batch = collate(noise(lengths, args.num_classes))
    return batch


def micro_batch_seconds(args: argparse.Namespace, asked: float) -> float:
    """Seconds of audio of a micro-batch: what is asked for, else the config's.

    Where the device's memory decides (``device_bins: auto``), it holds a whole update.
    """
    bins = args.batch_bins
    if args.update_bins:
        bins = args.update_bins if args.device_bins == "auto" else int(args.device_bins)
    return asked or bins / SAMPLE_RATE


def micro_batches(args: argparse.Namespace, seconds: float) -> int:
    """Micro-batches of so many seconds in an update of one GPU."""
    if args.update_bins:
        return max(1, round(args.update_bins / SAMPLE_RATE / seconds))
    return args.accum_grad


def prepare(models: Iterable[nn.Module]) -> None:
    """Prepare frozen weights as trainings do, as if they came from a base's file.

    All models that share them must be there by now: they take their precision.
    """
    for model in models:
        encoder = model.encoder
        frozen = [n for n, p in encoder.named_parameters() if not p.requires_grad]
        encoder._base_keys, encoder.base_is_external = set(frozen), True
        model.keep_frozen()
