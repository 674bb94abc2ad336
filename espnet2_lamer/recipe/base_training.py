"""Stage 0: base and teacher, verified and recorded by checksum.

With ``--retrain true`` both are trained from nothing, in two rounds as HuBERT does:
units of MFCC, then units of the first round's own features. Two departures from HuBERT
save updates: the first round masks less, and the second round starts from the first
one's weights. The base hears the old languages, the teacher all, of ``--corpus``.
"""

import logging
import shutil
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from espnet2_lamer.analysis.plots import write_curves
from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.convert.huggingface import save_huggingface
from espnet2_lamer.convert.load import (
    load_hubert,
    local_source,
    read_architecture,
    source_sha256,
)
from espnet2_lamer.data.mini import build_pretraining_corpora
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.checksum import check_file
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.layers import parse_allocation
from espnet2_lamer.recipe.data import format_ssl, prepare_corpus
from espnet2_lamer.recipe.declaration import as_arguments, refused
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.pretraining import train_ssl, write_shapes
from espnet2_lamer.recipe.settle import FROM_DATA
from espnet2_lamer.recipe.upstreams import is_mini
from espnet2_lamer.tasks.hubert import LamerHubertTask
from espnet2_lamer.units.assign import assign_units
from espnet2_lamer.units.features import dump_features
from espnet2_lamer.units.kmeans import KmeansConfig, learn_kmeans
from espnet2_lamer.units.teacher import load_teacher
from espnet2_lamer.upstream import load_model


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

    A killed run goes on where it stopped: ``work_dir`` holds features, labels and
    experiments. Data dirs have ``utt2num_samples`` and ``utt2lang``.
    """
    teacher = "mfcc"
    start: list[str] = []
    curves = {}
    for number, plan in enumerate(rounds, 1):
        here = work_dir / f"round{number}"
        done, experiment = here / "hf", here / "exp"
        if not done.is_dir():
            logging.info("%s: round %d of %d", work_dir, number, len(rounds))
            dirs = {"train": train_dirs, "dev": dev_dirs}
            _make_units(dirs, here, teacher, plan, seed, nj)
            options = as_arguments(
                max_epoch=plan.epochs,
                scheduler_conf=f"total_steps={plan.epochs * 500}",
                encoder_conf=f"mask_prob={plan.mask_prob}",
                seed=seed,
            )
            train_ssl(
                config,
                here / "train",
                here / "dev",
                here / "stats",
                experiment,
                plan.n_clusters,
                options + start,
            )
            save_huggingface(_backbone(experiment), done)
        teacher = str(done)
        start = ["--encoder_conf", f"base={done}"]
        curves[f"round {number}"] = experiment
    titles = {key: key for key in ("loss_m", "acc_m", "acc_u")}
    write_curves(curves, work_dir / "curves.csv", titles)
    save_huggingface(_backbone(experiment), output_dir, dtype=torch.float16)


def _backbone(experiment: Path):
    """Rebuild the plain HuBERT of a trained experiment, mask embedding included."""
    weights = experiment / "valid.loss_m.best.pth"
    check_file(weights)
    model, _ = LamerHubertTask.build_model_from_file(
        experiment / "config.yaml", weights
    )
    hubert = model.encoder.hubert_pretrain_model
    hubert.wav2vec2.mask_embedding = hubert.mask_generator.mask_embedding.detach()
    return hubert.wav2vec2


def _merge(directories: list[Path], output: Path) -> None:
    for name in ("wav.scp", "utt2num_samples", "utt2lang"):
        tables = [read_table(directory / name) for directory in directories]
        write_table(output / name, {k: v for table in tables for k, v in table.items()})


def _make_units(
    dirs: dict[str, list[Path]],
    here: Path,
    source: str,
    plan: Round,
    seed: int,
    nj: int,
) -> None:
    teacher = load_teacher(source, plan.teacher_layer)
    for split, directories in dirs.items():
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
            files = (here / split / "wav.scp", here / split / "text.km")
            assign_units(teacher, codebook, *files, nj)


def retrain(options: Options) -> tuple[str, str]:
    """Train a base (the old languages) and a teacher (all of them) from nothing.

    Returns:
        Directories of base and teacher under ``<expdir>/stage0``. To ship the mini
        ones, copy them over ``mini/base`` and ``mini/teacher`` and renew
        ``mini/SHA256SUMS``.

    Raises:
        RecipeError: The corpus cannot be read, or there is no old language.
    """
    if options.ngpu:
        logging.warning(
            "--retrain true: base and teacher train on the CPU, whatever --ngpu says: "
            "the committed ones did"
        )
    experiments = options.expdir / "stage0"
    config = Path("conf/train_ssl_mini_base.yaml")
    if not config.is_file():  # the form of bin.espnet_tree
        config = Path("conf/tuning") / config.name
    for name, dirs in _speech(options, options.dumpdir / "stage0").items():
        work = experiments / name
        if not (work / "final").is_dir():
            how = {"seed": options.seed, "nj": options.nj}
            train_from_nothing(*dirs, config, work, work / "final", **how)
    return tuple(str(experiments / name / "final") for name in ("base", "teacher"))


def _speech(options: Options, data: Path) -> dict[str, list[list[Path]]]:
    """Prepare what base and teacher hear: their train and their dev directories."""
    if not options.retrains_on_corpus:
        build_pretraining_corpora(data, nj=options.nj, seed=options.seed)
        heard = {"base": ["eng"], "teacher": ["eng", "cmn", "yue"]}
        return {
            name: [
                [data / f"{name}_{split}_{lang}" for lang in langs]
                for split in ("train", "dev")
            ]
            for name, langs in heard.items()
        }
    if not options.replay_langs:
        raise refused("replay_langs", "", "the languages that a base is to know")
    own = copy(options)
    own.datadir = data / "corpus"
    prepare_corpus(own)
    dirs = {}
    for name, langs in (("base", options.replay_langs), ("teacher", options.langs)):
        # As stage 2, but all of every language.
        own.dumpdir = data / name
        own.new_langs, own.replay_langs = list(langs), []
        format_ssl(own)
        dirs[name] = [[own.raw / "ssl_train"], [own.raw / "ssl_dev"]]
    return dirs


def _record(source: str) -> dict[str, Any]:
    weights = Path(source) / "model.safetensors"
    if is_mini(source) and not weights.is_file():
        raise RecipeError(
            f"{weights}: not found; the repository of espnet2_lamer has it: restore it "
            "there with git, or, for ESPnet's tree, run `make espnet-tree DIR=ESPNET` "
            "there. Or name other models by --base and --teacher, or train both, an "
            "hour or more: --retrain true"
        )
    if source.startswith("s3prl:") or source == "mfcc":
        return {"source": source, "path": source, "sha256": None}
    path = local_source(source)
    return {"source": source, "path": path, "sha256": source_sha256(path)}


def check_weights(records: dict[str, dict[str, Any]]) -> None:
    """Load base and teacher once: what is damaged, or holds NaN, is said now."""
    for name, load in (("base", load_hubert), ("teacher", load_model)):
        if records[name]["sha256"]:
            load(records[name]["path"])


def _verify_mini(records: dict[str, dict[str, Any]], options: Options) -> None:
    """Compare the mini checkpoints with the sums beside them."""
    for record in records.values():
        path = Path(record["path"])
        sums = path.with_name("SHA256SUMS")
        if not (is_mini(record["path"]) and sums.is_file()):
            continue
        lines = sums.read_text().splitlines()
        expected = {name: digest for digest, name in (line.split() for line in lines)}
        name = f"{path.name}/model.safetensors"
        if expected.get(name) != record["sha256"]:
            raise RecipeError(
                f"{path.parent / name}: SHA-256 is {record['sha256']}, expected "
                f"{expected.get(name)}; restore the file with git, or train it anew: "
                f"{options.command(stage=0, stop_stage=0, retrain=True)}"
            )


def prepare_checkpoints(options: Options) -> None:
    """Find, verify and record base and teacher; write the random upstream."""
    base, teacher = options.base, options.teacher
    if options.retrain:
        base, teacher = retrain(options)
    records = {"base": _record(base), "teacher": _record(teacher)}
    _verify_mini(records, options)
    check_weights(records)
    _check_layers(records["base"]["path"], options)
    _write_random(records["base"]["path"], options)
    for name, record in records.items():
        logging.info("%s: %s (SHA-256 %s)", name, record["path"], record["sha256"])
    write_json(options.checkpoints, records)


def _check_layers(base: str, options: Options) -> None:
    layers = read_architecture(base)["encoder_num_layers"]
    for name in ("asr_layer", "lid_layer", "recluster"):
        value = getattr(options, name)
        if value != "all" and not 0 <= value <= layers:
            raise refused(name, value, f"0 to {layers}, the layers of {base}")
    try:
        if options.allocation not in ("", *FROM_DATA):
            parse_allocation(options.allocation, layers)
    except ValueError as error:
        raise RecipeError(f"--allocation: {error}") from error


def _write_random(base: str, options: Options) -> None:
    """Write the base's network with random weights: the upstream that knows nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = build_hubert(read_architecture(base))
    save_huggingface(model, options.random_upstream)
