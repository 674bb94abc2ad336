"""Train ML-SUPERB heads, with or without their upstream, through ESPnet's ASR task.

A trained head is written as a waveform-in model that needs no other file.
"""

import argparse
import copy
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from espnet2_lamer.constants import LID_ROUTED, SAMPLE_RATE, TUNES, UPSTREAM_MODES
from espnet2_lamer.convert.state import read_state
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.feature_store import (
    StorePlan,
    plan_store,
    store_features,
    upstream_fingerprint,
)
from espnet2_lamer.evaluation.lid_routed import HeadLanguages, routed
from espnet2_lamer.evaluation.recogniser_files import write_record
from espnet2_lamer.evaluation.runs import made_from, put_aside
from espnet2_lamer.evaluation.text_settings import TextSettings
from espnet2_lamer.evaluation.tokens import (
    BPE_MODEL,
    TARGETS,
    Vocabulary,
    build_vocabulary,
    check_targets,
    read_all_targets,
    token_type_of,
)
from espnet2_lamer.fileio.atomic import atomic_dir, write_json
from espnet2_lamer.fileio.checksum import checked_file
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.fileio.foreign import check_weights, read_yaml
from espnet2_lamer.fileio.hashing import sha256_file, sha256_value
from espnet2_lamer.fileio.locks import exclusive
from espnet2_lamer.train.checkpoint import LATEST
from espnet2_lamer.train.console import run_espnet

# Options that say where a head was trained, not what it is: not in final/config.yaml.
_LOCAL_OPTIONS = {
    "config": None,
    "output_dir": None,
    "train_data_path_and_name_and_type": [],
    "valid_data_path_and_name_and_type": [],
    "train_shape_file": [],
    "valid_shape_file": [],
    "non_linguistic_symbols": None,
}


@dataclass(frozen=True)
class HeadOptions:
    """What a head is, beside its data and its config.

    Attributes:
        layer: One state index of the upstream, or ``"all"`` for the learned weighted
            sum.
        target: ``text``; ``lang``: the one word ``[eng]`` of ``utt2lang``, as
            ML-SUPERB's LID; ``lang_text``: the tag, then the text.
        store_dtype: ``float32`` or ``float16`` of stored features.
        feature_store_gb: Where the features of a head would take more, in 10^9 bytes,
            the upstream runs in every epoch instead. 0: always.
        nbpe: Size of the vocabulary of unit ``bpe``.
        learning_rate: Instead of the config's, also as peak of its schedule.
        tune: ``head`` on stored features of the frozen upstream; with the others the
            upstream trains too, see ``tasks.tuning``, and runs in every epoch.
        alone: Whether it is of one language in ML-SUPERB's monolingual track, whose
            script keeps what stands in brackets.
        upstream_mode: ``train``: the frozen upstream drops what it dropped in its own
            training while the head trains, and runs in every epoch.
    """

    layer: int | str = "all"
    target: str = "text"
    unit: str = "char"
    store_dtype: str = "float32"
    feature_store_gb: float = 50.0
    nbpe: int = 200
    learning_rate: float | None = None
    seed: int = 0
    ngpu: int = 0
    tune: str = "head"
    upstream_mode: str = "eval"
    alone: bool = False

    def __post_init__(self) -> None:
        """Check target, tune and upstream_mode."""
        for name, known in (
            ("target", TARGETS),
            ("tune", TUNES),
            ("upstream_mode", UPSTREAM_MODES),
        ):
            value = getattr(self, name)
            if value not in known:
                raise RecipeError(
                    f"{name}: found {value!r}, expected one of {', '.join(known)}"
                )

    @property
    def token_type(self) -> str:
        """ESPnet's token type."""
        return "word" if self.target == "lang" else token_type_of(self.unit)


def train_head(
    upstream: str | Path | torch.nn.Module,
    train_dir: str | Path | Sequence[str | Path],
    dev_dir: str | Path | Sequence[str | Path],
    store_root: str | Path,
    output_dir: str | Path,
    config: str | Path,
    options: HeadOptions | None = None,
    *,
    source: str | Path | None = None,
    record: Mapping[str, Any] | None = None,
) -> Path:
    """Train a head on a frozen upstream and write it as a waveform-in model.

    Features are stored (or found), the head is trained on them by ESPnet's ASRTask in
    this process (with the upstream where ``options`` tune it), then config and averaged
    checkpoint are rewritten to ``frontend: lamer_upstream`` with the upstream's weights
    inside: ``<output_dir>/final``, which is returned, needs no other file. A finished
    head with the same inputs is returned as it is; an interrupted one goes on after its
    last epoch; one made from other inputs is put aside as ``<output_dir>.old-<hash>``.
    While another process trains the same head, this one waits. One that ran out of GPU
    memory begins anew: dropout after a checkpoint is not what it would have been
    without the break.

    Args:
        upstream: What ``espnet2_lamer.load_model`` accepts, or its result.
        train_dir: Data directory with ``wav.scp`` and ``text`` (or ``utt2lang``), or
            several that are trained on together. dev_dir: likewise; chooses the
            checkpoints.
        source: What ``upstream`` was loaded from, where it is given as a module: needed
            when features are too large to be stored.
        record: Written to ``run.json`` before training starts.

    Raises:
        RecipeError: Input is missing or contradicts itself, or ESPnet stopped before
            it wrote a checkpoint.
    """
    options = options or HeadOptions()
    output_dir = Path(output_dir)
    settings = TextSettings.read(read_yaml(config).get("text_conf"), config)
    if not isinstance(upstream, torch.nn.Module):
        from espnet2_lamer.upstream import load_model

        source, upstream = upstream, load_model(upstream)
    fingerprint = upstream_fingerprint(upstream)
    texts: dict[str, dict[str, str]] = {}
    plans: dict[str, list[StorePlan]] = {}
    every: dict[str, list[Path]] = {}
    for name, found in (("train", train_dir), ("dev", dev_dir)):
        dirs = [Path(found)] if isinstance(found, str | Path) else [*map(Path, found)]
        what = options.target, options.unit, settings, options.alone
        texts[name], every[name] = read_all_targets(dirs, *what), dirs
        choice, form = options.layer, options.store_dtype
        plans[name] = [
            plan_store(upstream, choice, directory, store_root, form, fingerprint)
            for directory in dirs
        ]
    inputs = {
        "upstream": fingerprint,
        "layer": options.layer,
        "stores": {k: [p.directory.name for p in v] for k, v in plans.items()},
        "audio": {k: [p.audio for p in v] for k, v in plans.items()},
        "texts": {k: sha256_value(v) for k, v in texts.items()},
        "target": options.target,
        "token_type": options.token_type,
        "nbpe": options.nbpe if options.token_type == "bpe" else None,
        "config": sha256_file(config),
        "learning_rate": options.learning_rate,
        "seed": options.seed,
    }
    if options.tune != "head":
        # Heads that were trained before there was a choice keep their record.
        inputs["tune"] = options.tune
    languages = None
    if options.tune == LID_ROUTED:
        languages = HeadLanguages.read(every, texts)
        inputs["languages"] = sha256_value(languages.of)
    drops = options.upstream_mode == "train" and upstream.drop_in_training()
    if drops:
        inputs["upstream_mode"] = options.upstream_mode
    elif options.upstream_mode == "train":
        text = "%s: upstream_mode train: the upstream drops nothing, as in eval mode"
        logging.info(text, output_dir)
    final = output_dir / "final"
    tables = [p.data_dir / "wav.scp" for v in plans.values() for p in v]
    with exclusive(output_dir):
        if made_from(final / "inputs.json", inputs, tables):
            logging.info("%s: already trained", output_dir)
            return final
        inputs_file = output_dir / "inputs.json"
        if inputs_file.is_file() and not made_from(inputs_file, inputs, tables):
            put_aside(output_dir)
        tags = sorted({text.split(" ", 1)[0] for text in texts["train"].values()})
        data = output_dir / "data"
        vocabulary = build_vocabulary(
            list(texts["train"].values()),
            options.token_type,
            data,
            tags if options.target == "lang_text" else (),
            options.nbpe,
        )
        runs = [f"tune {options.tune}"] if options.tune != "head" else []
        runs += ["upstream_mode train"] if drops else []
        stored = _may_store(plans, options, source, output_dir, " ".join(runs))
        device = "cuda" if options.ngpu else "cpu"
        device = device if stored else None
        for name, targets in texts.items():
            _write_data(data / name, targets, vocabulary, plans[name], device)
        write_json(inputs_file, inputs)
        if record is not None:
            write_json(output_dir / "run.json", record)
        command = ["--config", str(config), "--output_dir", str(output_dir)]
        command += ["--resume", "true", "--ngpu", str(options.ngpu)]
        command += [*vocabulary.options(data), *_schedule_options(config, options)]
        plan = plans["train"][0]
        command += _input_options(data, plan, None if stored else source)
        if options.tune != "head":
            command += ["--frontend_conf", f"tune={options.tune}"]
        if languages is not None:
            command += languages.write(data)
        if drops:
            command += ["--frontend_conf", "upstream_mode=train"]
        begun = (output_dir / LATEST).exists()
        try:
            _run_espnet(command, output_dir)
        except torch.OutOfMemoryError:
            # Where it runs again it shall be the head that it would have been.
            if not begun:
                (output_dir / LATEST).unlink(missing_ok=True)
            raise
        record = {"unit": options.unit, "text": settings.as_dict()}
        record["tune"] = options.tune
        if languages is not None:
            upstream = routed(upstream, output_dir)
            record["languages"] = languages.names
        _write_final(output_dir, upstream, options.layer, vocabulary, inputs, record)
    return final


def _may_store(
    plans: Mapping[str, Sequence[StorePlan]],
    options: HeadOptions,
    source: str | Path | None,
    output_dir: Path,
    varying: str = "",
) -> bool:
    """Say how large the features are, and whether they are stored.

    ``varying`` says what makes them others in every epoch.
    """
    if varying:
        if source is None:
            raise RecipeError(
                f"{output_dir}: {varying}: the upstream was given as a module; give "
                "its path or name, so that training can load and run it"
            )
        return False
    limit = options.feature_store_gb
    every = [plan for part in plans.values() for plan in part]
    missing = sum(plan.gigabytes for plan in every if not plan.stored)
    total = sum(plan.gigabytes for plan in every)
    size = f"{total:.3f} GB, {total - missing:.3f} GB of it are there"
    logging.info("%s: features take %s; limit %g GB", output_dir, size, limit)
    if not missing or total <= limit:
        return True
    if source is None:
        raise RecipeError(
            f"{output_dir}: its features take {total:.1f} GB, more than "
            f"feature_store_gb ({limit:g}), and the upstream was given as a module; "
            "give its path or name, so that training can run it"
        )
    logging.warning(
        "%s: features are more than --feature_store_gb %g: the upstream runs in every "
        "epoch, which gives the same head many times more slowly",
        output_dir,
        limit,
    )
    return False


def _write_data(
    directory: Path,
    texts: dict[str, str],
    vocabulary: Vocabulary,
    plans: Sequence[StorePlan],
    device: str | None,
) -> None:
    """Write what ESPnet reads, after storing features on ``device``.

    Without a device the upstream runs in training and ``feats.scp`` names audio, with
    the shapes of its features, so that both ways have the same batches.
    """
    lengths = check_targets(texts, vocabulary, str(directory / "text"))
    size = len(vocabulary.tokens)
    scp, shape, audio = {}, {}, {}
    for plan in plans:
        audio |= {utt: path for utt, path, _ in plan.samples}
        if device is None:
            scp = audio
        else:
            scp |= read_table(store_features(plan, device).scp)
        shape |= plan.shapes
    tables = {
        "text": texts,
        "text_shape": {utt: f"{n},{size}" for utt, n in lengths.items()},
        "feats.scp": scp,
        "wav.scp": audio,
        "speech_shape": shape,
    }
    for name, table in tables.items():
        write_table(directory / name, table)


def _schedule_options(config: str | Path, head: HeadOptions) -> list[str]:
    options = ["--seed", str(head.seed)]
    if head.learning_rate is not None:
        options += ["--optim_conf", f"lr={head.learning_rate}"]
        if "max_lr" in (read_yaml(config).get("scheduler_conf") or {}):
            options += ["--scheduler_conf", f"max_lr={head.learning_rate}"]
    return options


def _input_options(data: Path, plan: StorePlan, source: str | Path | None) -> list[str]:
    """Say what the head reads: stored features, or audio through the upstream."""
    dim = plan.upstream.dim
    kind, frontend = "kaldi_ark", "stored_features"
    conf = {"dim": dim, "num_states": plan.num_states}
    if source is not None:
        kind, frontend = "sound", "lamer_upstream"
        conf = {"upstream": source, "layer": plan.layer}
    options = ["--preencoder_conf", f"input_size={dim}", "--frontend", frontend]
    for key, value in conf.items():
        options += ["--frontend_conf", f"{key}={value}"]
    for espnet_name, name in (("train", "train"), ("valid", "dev")):
        for file in (f"feats.scp,speech,{kind}", "text,text,text"):
            option = f"--{espnet_name}_data_path_and_name_and_type"
            options += [option, str(data / name / file)]
        for shape in ("speech_shape", "text_shape"):
            options += [f"--{espnet_name}_shape_file", str(data / name / shape)]
    return options


def _run_espnet(cmd: list[str], output_dir: Path) -> None:
    from espnet2_lamer.tasks.asr import LamerASRTask

    start = time.monotonic()
    run_espnet(LamerASRTask, "asr_train", cmd, output_dir / "train.log")
    checkpoint = check_weights(output_dir / LATEST, "cpu")
    stats = checkpoint["reporter"]["stats"]
    epoch = min(stats, key=lambda e: stats[e]["valid"]["loss"])
    loss = float(stats[epoch]["valid"]["loss"])
    report = {"epochs": len(stats), "best_epoch": epoch, "valid_loss": loss}
    if "acc_lid" in stats[epoch]["valid"]:
        report["valid_language_accuracy"] = float(stats[epoch]["valid"]["acc_lid"])
    write_json(output_dir / "training.json", report)
    rate = 100 * stats[epoch]["valid"].get("cer_ctc", float("nan"))
    best = f"epoch {epoch}, loss {loss:.3f}, error rate {rate:.1f} %"
    took = f"{len(stats)} epochs in {time.monotonic() - start:.1f} s"
    logging.info("%s: %s; best on dev: %s", output_dir, took, best)


def _write_final(
    output_dir: Path,
    upstream: torch.nn.Module,
    layer: int | str,
    vocabulary: Vocabulary,
    inputs: dict[str, Any],
    record: dict[str, Any],
) -> None:
    """Rewrite config and averaged checkpoint to ``frontend: lamer_upstream``."""
    averaged = output_dir / "valid.loss.ave.pth"
    if not averaged.is_file():
        raise RecipeError(
            f"{output_dir}: training wrote no {averaged.name}; read "
            f"{output_dir / 'train.log'}"
        )
    config = read_yaml(output_dir / "config.yaml")
    config |= _LOCAL_OPTIONS
    config["frontend"] = "lamer_upstream"
    # Only the loss is another one.
    config["model"] = "espnet" if config["model"] == LID_ROUTED else config["model"]
    config["frontend_conf"] = {
        "upstream_conf": upstream.architecture(),
        "layer": layer,
        "fs": SAMPLE_RATE,
    }
    if vocabulary.bpe_model is not None:
        config["bpemodel"] = str(output_dir / "final" / BPE_MODEL)
    weights = {
        f"frontend.upstream.{key}": value.detach().cpu().clone()
        for key, value in upstream.state_dict().items()
    }
    # With what was tuned of the upstream, and without the count of updates.
    trained = read_state(averaged)
    weights |= {k: v for k, v in trained.items() if k != "frontend.updates"}
    from espnet2_lamer.tasks.asr import LamerASRTask

    # Before they are written: head and upstream make a whole model.
    model = LamerASRTask.build_model(argparse.Namespace(**copy.deepcopy(config)))
    model.load_state_dict(weights)
    with atomic_dir(output_dir / "final") as directory:
        (directory / "config.yaml").write_text(
            yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
            encoding="utf-8",
        )
        with checked_file(directory / "model.pth") as stream:
            torch.save(weights, stream)
        if vocabulary.bpe_model is not None:
            shutil.copyfile(vocabulary.bpe_model, directory / BPE_MODEL)
        write_record(directory, record)
        write_json(directory / "inputs.json", inputs)


def head_bytes(head: int, upstream: int) -> int:
    """Return about what a head leaves on disk, by parameters of it and its upstream.

    In float32: a checkpoint with Adam's two moments, the best and the latest model, and
    the final one, which holds the upstream.
    """
    return 4 * (5 * head + head + upstream)
