"""Speech, teacher and codebook of the sections on units."""

from pathlib import Path

import numpy as np
import soundfile

from benchmarks.stock_setup import RATE, SIZES
from espnet2_lamer.units.codebook import save_codebook
from espnet2_lamer.units.teacher import Teacher

SEED = 0


def write_teacher(directory: Path, size: str) -> Path:
    """Write a HuBERT with random weights as a Hugging Face directory.

    Args:
        directory: Where to put ``teacher``.
        size: Key of ``stock_setup.SIZES``; ``base`` is mHuBERT-147's architecture.
    """
    import torch

    from espnet2_lamer.convert.architecture import STRUCTURE, build_hubert
    from espnet2_lamer.convert.huggingface import save_huggingface

    torch.manual_seed(SEED)
    architecture = {key: SIZES[size][key] for key in STRUCTURE if key in SIZES[size]}
    save_huggingface(build_hubert(architecture), directory / "teacher")
    return directory / "teacher"


def write_speech(
    directory: Path, utterances: int, shortest: float, longest: float
) -> tuple[Path, list[np.ndarray]]:
    """Write noise as FLAC, and ``wav.scp``.

    Args:
        directory: Where to put ``speech``.
        utterances: How many.
        shortest: Seconds of the shortest.
        longest: Seconds of the longest; lengths are spread evenly.

    Returns:
        The path of ``wav.scp`` and the samples in its order.
    """
    generator = np.random.default_rng(SEED)
    folder = directory / "speech"
    folder.mkdir(parents=True)
    lines, samples = [], []
    for number, seconds in enumerate(np.linspace(shortest, longest, utterances)):
        path = folder / f"utt{number:05d}.flac"
        noise = 0.1 * generator.standard_normal(int(seconds * RATE))
        soundfile.write(path, noise, RATE)
        samples.append(soundfile.read(path, dtype="float32")[0])
        lines.append(f"{path.stem} {path}\n")
    scp = directory / "wav.scp"
    scp.write_text("".join(lines), encoding="utf-8")
    return scp, samples


def write_codebook(path: Path, teacher: Teacher, units: int) -> Path:
    """Write random centroids that claim to be learned on this teacher."""
    identity = teacher.identity
    metadata = {
        "teacher": identity["source"],
        "teacher_sha256": identity["sha256"],
        "layer": identity["layer"],
        "normalisation": identity["normalisation"],
        "K": units,
        "seed": SEED,
        "frames": 0,
        "inertia": 0.0,
    }
    centroids = np.random.default_rng(SEED).standard_normal((units, teacher.dim))
    save_codebook(path, centroids.astype(np.float32), metadata)
    return path
