"""Stage 0 with ``--retrain true``: the mini base and teacher, from nothing.

Two rounds as HuBERT does: units of MFCC, then units of the first round's own features.
Two departures from HuBERT save updates: the first round masks less, and the second
round starts from the first one's weights.
"""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.checksum import check_file
from espnet2_lamer.recipe.pretraining import train_ssl, write_shapes


@dataclass(frozen=True)
class Round:
    """One round: where units come from, how many, masking, and how long to train."""

    teacher_layer: int | None
    n_clusters: int
    mask_prob: float
    epochs: int


# Epochs are 500 updates of 20 s of audio (conf/train_ssl_mini_base.yaml).
ROUNDS = (Round(None, 100, 0.3, 6), Round(3, 100, 0.8, 5))


def train_from_nothing(
    train_dirs: list[Path],
    dev_dirs: list[Path],
    config: Path,
    work_dir: Path,
    output_dir: Path,
    rounds: tuple[Round, ...] = ROUNDS,
    seed: int = 0,
    nj: int = 1,
) -> None:
    """Train a HuBERT in rounds and write it as an fp16 Hugging Face directory.

    A killed run goes on where it stopped.

    Args:
        train_dirs: Data dirs with ``utt2num_samples`` and ``utt2lang``.
        dev_dirs: Likewise for validation.
        config: Training YAML.
        work_dir: Features, labels and experiments.
        output_dir: Gets ``config.json``, ``model.safetensors`` ...
        rounds: What to do in each round.
        seed: Seed of k-means and training.
        nj: Processes for features and labels.
    """
    import torch

    from espnet2_lamer.convert.huggingface import save_huggingface

    teacher = "mfcc"
    start: list[str] = []
    for number, plan in enumerate(rounds, 1):
        here = work_dir / f"round{number}"
        done = here / "hf"
        if not done.is_dir():
            logging.info("%s: round %d of %d", work_dir, number, len(rounds))
            _make_units(train_dirs, dev_dirs, here, teacher, plan, seed, nj)
            updates = plan.epochs * 500
            best = train_ssl(
                config,
                here / "train",
                here / "dev",
                here / "stats",
                here / "exp",
                plan.n_clusters,
                [
                    *("--max_epoch", str(plan.epochs)),
                    *("--scheduler_conf", f"total_steps={updates}"),
                    *("--encoder_conf", f"mask_prob={plan.mask_prob}"),
                    *("--seed", str(seed)),
                    *start,
                ],
            )
            save_huggingface(_backbone(here / "exp", best), done)
        teacher = str(done)
        start = ["--encoder_conf", f"base={done}"]
    from espnet2_lamer.analysis.curves import write_curves

    write_curves(
        {
            f"round {number}": work_dir / f"round{number}" / "exp"
            for number in range(1, len(rounds) + 1)
        },
        work_dir / "curves.csv",
        ("loss_m", "acc_m", "acc_u"),
    )
    model = _backbone(here / "exp", here / "exp" / "valid.loss_m.best.pth")
    save_huggingface(model, output_dir, dtype=torch.float16)


def _backbone(experiment: Path, weights: Path):
    """Rebuild the plain HuBERT of a trained experiment, mask embedding included."""
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    check_file(weights)
    model, _ = LamerHubertTask.build_model_from_file(
        experiment / "config.yaml", weights
    )
    hubert = model.encoder.hubert_pretrain_model
    hubert.wav2vec2.mask_embedding = hubert.mask_generator.mask_embedding.detach()
    return hubert.wav2vec2


def _merge(directories: list[Path], output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for name in ("wav.scp", "utt2num_samples", "utt2lang"):
        lines: list[str] = []
        for directory in directories:
            path = directory / name
            if not path.is_file():
                raise RecipeError(f"{path}: file not found; it is made by stage 0")
            lines += path.read_text(encoding="utf-8").splitlines()
        lines.sort(key=str.encode)
        (output / name).write_text("".join(f"{line}\n" for line in lines))


def _make_units(
    train_dirs: list[Path],
    dev_dirs: list[Path],
    here: Path,
    teacher_source: str,
    plan: Round,
    seed: int,
    nj: int,
) -> None:
    from espnet2_lamer.units.features import dump_features
    from espnet2_lamer.units.kmeans import KmeansConfig, learn_kmeans
    from espnet2_lamer.units.labels import assign_units
    from espnet2_lamer.units.teacher import load_teacher

    teacher = load_teacher(teacher_source, plan.teacher_layer)
    for split, directories in (("train", train_dirs), ("dev", dev_dirs)):
        _merge(directories, here / split)
    write_shapes(here / "train", here / "stats" / "train")
    write_shapes(here / "dev", here / "stats" / "valid")
    codebook = here / "codebook.npz"
    if not codebook.is_file():
        features = here / "features"
        dump_features(teacher, here / "train" / "wav.scp", features, nj=nj)
        learn_kmeans(features, codebook, KmeansConfig(plan.n_clusters, seed=seed))
        shutil.rmtree(features)
    for split in ("train", "dev"):
        if not (here / split / "text.km.json").is_file():
            assign_units(
                teacher,
                codebook,
                here / split / "wav.scp",
                here / split / "text.km",
                nj,
            )
