"""Experiments on Whisper: experts, multilingual baselines, mixtures, students."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import strftime
from typing import Any

import yaml

from espnet2_lamer.compat import reporter_seconds
from espnet2_lamer.evaluation.runs import made_from, put_aside
from espnet2_lamer.fileio.atomic import write_json, write_text
from espnet2_lamer.fileio.checksum import check_file, checked_file
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.fileio.foreign import check_weights, read_yaml
from espnet2_lamer.fileio.hashing import sha256_file, sha256_value
from espnet2_lamer.fileio.prints import audio_digest
from espnet2_lamer.precision import AUTO
from espnet2_lamer.recipe.declaration import as_arguments, data_arguments
from espnet2_lamer.recipe.whisper.data import TARGET
from espnet2_lamer.recipe.whisper.options import STUDENTS, WhisperOptions
from espnet2_lamer.recipe.whisper.systems import (
    EXPERTS,
    expert_dir,
    needs_experts,
    systems_of,
)
from espnet2_lamer.recipe.whisper.weights import read_weights
from espnet2_lamer.registry import register
from espnet2_lamer.tasks.asr import LamerASRTask, load_whisper_model
from espnet2_lamer.train.console import run_espnet
from espnet2_lamer.whisper.lora import save_expert, whisper_parameter_report
from espnet2_lamer.whisper.text import write_token_list

MODEL = "model.pth"
EXPERT = "expert.safetensors"
_BEST = "valid.loss.best.pth"
# What a system must have in common with the experts that it is made of.
_SHARED = ("rank", "alpha", "targets", "encoder", "decoder")


def train_experts(options: WhisperOptions) -> None:
    """Train one expert after the other, then build the model that has them all."""
    if not needs_experts(options):
        return
    for lang in options.langs:
        experiment = expert_dir(options, lang)
        lora = {"method": "experts", "train_language": lang}
        train(options, experiment, options.expert_config, [lang], lora)
        model = load_whisper_model(experiment / "config.yaml", experiment / MODEL)
        save_expert(model, lang, experiment / EXPERT)
    lora = {"method": "experts", "train_language": None, **_expert_lora(options)}
    build(options, options.expdir / EXPERTS, lora, {"experts": expert_files(options)})


def train_systems(options: WhisperOptions, *kinds: str) -> None:
    """Train the systems of some kinds, those made of the experts after these."""
    systems = systems_of(options, *kinds)
    if kinds == STUDENTS:
        # What a layer-wise student has stored of its teachers serves the other one.
        systems.reverse()
    for system in systems:
        student = system.kind in STUDENTS
        lora: dict[str, Any] = {"method": "student" if student else system.kind}
        model: dict[str, Any] = {}
        if system.shared_layers is not None:
            lora["shared_layers"] = system.shared_layers
        if system.rank is not None:
            lora["student_rank"] = system.rank
        if student:
            stored = _part(read_yaml(system.config), "model_conf").get("teacher_cache")
            cache = str((options.expdir / "teacher_cache").absolute())
            model["distillation"] = system.kind.removeprefix("kd_")
            model["teacher_cache"] = cache if stored else None
        if student or system.kind == "mole":
            lora |= _expert_lora(options)
            model["experts"] = expert_files(options)
        directory = system.directory(options)
        train(options, directory, system.config, options.langs, lora, model)


def expert_files(options: WhisperOptions) -> dict[str, str]:
    """Return the experts' files by language."""
    return {
        lang: str((expert_dir(options, lang) / EXPERT).absolute())
        for lang in options.langs
    }


def _expert_lora(options: WhisperOptions) -> dict[str, Any]:
    conf = _part(read_yaml(options.expert_config), "encoder_conf")
    stated = _part(conf, "lora")
    return {key: stated[key] for key in _SHARED if key in stated}


def _part(settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    return dict(settings.get(key) or {})


def _make_config(
    options: WhisperOptions,
    settings: dict[str, Any],
    langs: Sequence[str],
    lora: Mapping[str, Any],
    model: Mapping[str, Any],
) -> dict[str, Any]:
    """Complete a config: Whisper, languages, their tokens, the experts."""
    names = dict.fromkeys(("encoder", "decoder", "model"), "whisper_lora")
    settings = names | settings
    stated = _part(_part(settings, "encoder_conf"), "lora")
    tokens = {lang: options.prompts[lang] for lang in langs}
    whole = {**stated, **lora, "languages": list(langs), "language_tokens": tokens}
    for side in ("encoder_conf", "decoder_conf"):
        settings[side] = _part(settings, side) | {
            "whisper": str(Path(read_weights(options)["path"]).absolute()),
            "lora": whole,
        }
    settings["model_conf"] = _part(settings, "model_conf") | dict(model)
    return settings


def train(
    options: WhisperOptions,
    experiment: Path,
    config: Path,
    langs: Sequence[str],
    lora: Mapping[str, Any],
    model: Mapping[str, Any] | None = None,
) -> None:
    """Train through ESPnet's ASR task, unless the same was trained already.

    An interrupted training goes on after its last epoch; one made from other inputs is
    put aside as ``<experiment>.old-<hash>``. Leaves ``config.yaml``, ``model.pth`` (the
    epoch with the lowest validation loss) and ``training.json``. ``lora`` are fields of
    ``encoder_conf.lora``, ``model`` of ``model_conf``; they win over the YAML's.

    Raises:
        RecipeError: ESPnet stopped before it wrote a checkpoint.
    """
    model = model or {}
    settings = _make_config(options, read_yaml(config), langs, lora, model)
    tables = {split: _read(options, langs, split) for split in ("train", "dev")}
    sets = [options.set_dir(lang, split) for split in tables for lang in langs]
    scps = [directory / "wav.scp" for directory in sets]
    inputs = {
        "whisper": read_weights(options)["sha256"],
        # Where files are is not what they are.
        "settings": _without_paths(settings),
        "made_of": [sha256_file(path) for path in model.get("experts", {}).values()],
        "data": {split: sha256_value(found) for split, found in tables.items()},
        "audio": audio_digest(scps),
        "seed": options.seed,
    }
    record = experiment / "inputs.json"
    same = made_from(record, inputs, scps)
    if same and (experiment / "training.json").is_file():
        logging.info("%s: already trained", experiment)
        return
    if record.is_file() and not same:
        put_aside(experiment)
    more = ["--allow_variable_data_keys", "true"]
    for part, (split, found) in zip(("train", "valid"), tables.items(), strict=True):
        data = experiment / "data" / split
        for name, table in found.items():
            write_table(data / name, table)
        kinds = {
            data / "wav.scp": "speech,sound",
            data / "text": "text,text",
            data / "utt2langid": "lang,text_int",
        }
        more += data_arguments(part, kinds, [data / "speech_shape"])
    write_json(record, inputs)
    run_task(options, experiment, settings, more)
    check_file(experiment / _BEST)
    with checked_file(experiment / MODEL) as stream:
        with open(experiment / _BEST, "rb") as best:
            shutil.copyfileobj(best, stream, 2**20)
    _report(experiment)


def build(
    options: WhisperOptions,
    experiment: Path,
    lora: Mapping[str, Any],
    model: Mapping[str, Any],
    **encoder: Any,
) -> Path:
    """Write the ``config.yaml`` of a model that is made, not trained.

    ``lora`` and ``model`` are as for :func:`train`, ``encoder`` fields of
    ``encoder_conf``.
    """
    # In the precision of the experts.
    dtype = read_yaml(options.expert_config).get("amp_dtype", AUTO)
    settings = {"amp_dtype": dtype, "encoder_conf": encoder}
    settings = _make_config(options, settings, options.langs, lora, model)
    run_task(options, experiment, settings, ["--dry_run", "true"])
    return experiment / "config.yaml"


def run_task(
    options: WhisperOptions,
    experiment: Path,
    settings: Mapping[str, Any],
    more: Sequence[str],
) -> None:
    """Run ESPnet's ASR task in this process, its messages in ``train.log``."""
    register()
    tokens = options.expdir.absolute() / "tokens.txt"
    if not tokens.is_file():
        write_token_list(tokens, read_weights(options)["dims"]["n_vocab"])
    config = experiment / "train.yaml"
    write_text(config, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    command = as_arguments(
        config=config,
        output_dir=experiment,
        resume=True,
        seed=options.seed,
        ngpu=options.ngpu,
        token_type="whisper_multilingual",
        token_list=tokens,
        bpemodel="whisper_multilingual",
        input_size=1,
    )
    log = experiment / "train.log"
    run_espnet(LamerASRTask, "asr_train", [*command, *more], log)


def _read(
    options: WhisperOptions, langs: Sequence[str], split: str
) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for number, lang in enumerate(langs):
        directory = options.set_dir(lang, split)
        wavs = read_table(directory / "wav.scp")
        for name, table in (
            ("wav.scp", wavs),
            ("text", read_table(directory / TARGET)),
            ("speech_shape", read_table(directory / "utt2num_samples")),
            ("utt2langid", dict.fromkeys(wavs, str(number))),
        ):
            found.setdefault(name, {}).update(table)
    return found


def _without_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    kept = {
        key: {k: v for k, v in value.items() if k not in ("whisper", "experts")}
        if isinstance(value, Mapping)
        else value
        for key, value in settings.items()
    }
    if kept["model_conf"].get("teacher_cache"):
        kept["model_conf"]["teacher_cache"] = True
    return kept


def _report(experiment: Path) -> None:
    """Write ``training.json``: what was trained, for how long, and how well."""
    checkpoint = check_weights(experiment / "checkpoint.pth", "cpu")
    stats = checkpoint["reporter"]["stats"]
    best = min(stats, key=lambda epoch: stats[epoch]["valid"]["loss"])
    times = [part["time"] for epoch in stats.values() for part in epoch.values()]
    model = load_whisper_model(experiment / "config.yaml", experiment / MODEL)
    report = {
        "epochs": len(stats),
        "best_epoch": best,
        "valid_loss": float(stats[best]["valid"]["loss"]),
        "updates": stats[max(stats)]["train"]["total_count"],
        "seconds": round(sum(map(reporter_seconds, times)), 1),
        "parameters": whisper_parameter_report(model),
        "finished": strftime("%Y-%m-%dT%H:%M:%S"),
    }
    write_json(experiment / "training.json", report)
    logging.info(
        "%(experiment)s: %(updates)d updates in %(seconds).1f s; best on dev: epoch "
        "%(best_epoch)d, loss %(valid_loss).3f; %(trainable)d of %(total)d parameters "
        "trained",
        report | report["parameters"] | {"experiment": experiment},
    )
