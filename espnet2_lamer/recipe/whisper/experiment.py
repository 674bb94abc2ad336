"""One ESPnet experiment on Whisper: its config, its data, and what it was made from."""

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from espnet2_lamer.convert.state import read_tensors
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.provenance import made_from, put_aside
from espnet2_lamer.fileio.atomic import write_json, write_text
from espnet2_lamer.fileio.checksum import check_file, checked_file
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.fileio.hashing import sha256_file, sha256_value
from espnet2_lamer.precision import AUTO
from espnet2_lamer.recipe.whisper.data import TARGET
from espnet2_lamer.recipe.whisper.options import WhisperOptions
from espnet2_lamer.recipe.whisper.weights import read_weights

MODEL = "model.pth"
_BEST = "valid.loss.best.pth"


def make_config(
    options: WhisperOptions,
    config: Path | None,
    langs: Sequence[str],
    lora: Mapping[str, Any],
    model: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Complete a training config: Whisper, languages, their tokens, the experts.

    Args:
        options: Of the recipe.
        config: YAML of the training; None: a model that is not trained.
        langs: ``lora.languages``.
        lora: More of its fields; they win over the YAML's.
        model: Fields of ``model_conf``; they win, too.
    """
    settings: Any = {"encoder": "whisper_lora", "decoder": "whisper_lora"}
    settings["model"] = "whisper_lora"
    settings |= {"amp_dtype": precision(options)} if config is None else {}
    settings |= read_config(config)
    stated = (settings.get("encoder_conf") or {}).get("lora") or {}
    tokens = {lang: options.prompts[lang] for lang in langs}
    whole = {**stated, **lora, "languages": list(langs), "language_tokens": tokens}
    for side in ("encoder_conf", "decoder_conf"):
        settings[side] = {
            **(settings.get(side) or {}),
            "whisper": str(Path(read_weights(options)["path"]).absolute()),
            "lora": whole,
        }
    settings["model_conf"] = {**(settings.get("model_conf") or {}), **(model or {})}
    return settings


def read_config(config: Path | None) -> dict[str, Any]:
    """Read a training YAML; nothing is an empty one."""
    return {} if config is None else read_yaml(config)


def precision(options: WhisperOptions) -> str:
    """Return the ``amp_dtype`` of models that are not trained: the experts'."""
    return read_config(options.expert_config).get("amp_dtype", AUTO)


def train(
    options: WhisperOptions,
    experiment: Path,
    settings: Mapping[str, Any],
    langs: Sequence[str],
    made_of: Sequence[Path] = (),
) -> None:
    """Train through ESPnet's ASR task, unless the same was trained already.

    An interrupted training goes on after its last epoch; one made from other inputs is
    put aside as ``<experiment>.old-<hash>``. Leaves ``config.yaml``, ``model.pth`` (the
    epoch with the lowest validation loss) and ``training.json``.

    Args:
        options: Of the recipe.
        experiment: ESPnet's output directory.
        settings: As :func:`make_config` returns them.
        langs: Whose speech is trained on.
        made_of: Files of experts, part of what "the same" means.

    Raises:
        RecipeError: ESPnet stopped before it wrote a checkpoint.
    """
    tables = {split: _read(options, langs, split) for split in ("train", "dev")}
    inputs = {
        "whisper": read_weights(options)["sha256"],
        # Where files are is not what they are.
        "settings": _without_paths(settings),
        "made_of": [sha256_file(path) for path in made_of],
        "data": {split: sha256_value(found) for split, found in tables.items()},
        "seed": options.seed,
    }
    record = experiment / "inputs.json"
    if made_from(record, inputs) and (experiment / "training.json").is_file():
        logging.info("%s: already trained", experiment)
        return
    if record.is_file() and not made_from(record, inputs):
        put_aside(experiment)
    for split, found in tables.items():
        for name, table in found.items():
            write_table(experiment / "data" / split / name, table)
    write_text(experiment / "train.yaml", _dump(settings))
    write_json(record, inputs)
    run_espnet(options, experiment, _data_options(experiment / "data"))
    check_file(experiment / _BEST)
    with (
        open(experiment / _BEST, "rb") as best,
        checked_file(experiment / MODEL) as stream,
    ):
        shutil.copyfileobj(best, stream, 2**20)
    _report(experiment)


def build(
    options: WhisperOptions, experiment: Path, settings: Mapping[str, Any]
) -> Path:
    """Write the ``config.yaml`` of a model that is made, not trained.

    Returns:
        The file.
    """
    write_text(experiment / "train.yaml", _dump(settings))
    run_espnet(options, experiment, ["--dry_run", "true"])
    return experiment / "config.yaml"


def run_espnet(options: WhisperOptions, experiment: Path, more: Sequence[str]) -> None:
    """Run ESPnet's ASR task in this process, its messages in ``train.log``.

    Raises:
        RecipeError: ESPnet refused its options.
    """
    from espnet2_lamer.registry import register
    from espnet2_lamer.tasks.asr import LamerASRTask
    from espnet2_lamer.train.console import espnet_log
    from espnet2_lamer.whisper.text import write_token_list

    register()
    tokens = options.expdir.absolute() / "tokens.txt"
    if not tokens.is_file():
        write_token_list(tokens, read_weights(options)["dims"]["n_vocab"])
    command = [
        *("--config", str(experiment / "train.yaml"), "--output_dir", str(experiment)),
        *("--resume", "true", "--seed", str(options.seed), "--ngpu", str(options.ngpu)),
        *("--token_type", "whisper_multilingual", "--token_list", str(tokens)),
        *("--bpemodel", "whisper_multilingual", "--input_size", "1"),
        *more,
    ]
    with espnet_log(experiment / "train.log", experiment.name):
        try:
            LamerASRTask.main(cmd=command)
        except SystemExit as error:
            raise RecipeError(
                f"{experiment}: ESPnet refused its options; read the message above and "
                f"{experiment / 'train.log'}"
            ) from error


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


def _data_options(data: Path) -> list[str]:
    more = []
    for espnet_name, split in (("train", "train"), ("valid", "dev")):
        for file, key, kind in (
            ("wav.scp", "speech", "sound"),
            ("text", "text", "text"),
            ("utt2langid", "lang", "text_int"),
        ):
            more += [
                f"--{espnet_name}_data_path_and_name_and_type",
                f"{data / split / file},{key},{kind}",
            ]
        more += [f"--{espnet_name}_shape_file", str(data / split / "speech_shape")]
    return [*more, "--allow_variable_data_keys", "true"]


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


def _dump(settings: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)


def _report(experiment: Path) -> None:
    """Write ``training.json``: what was trained, for how long, and how well."""
    from espnet2_lamer.tasks.whisper import load_model
    from espnet2_lamer.whisper.report import whisper_parameter_report

    checkpoint = read_tensors(experiment / "checkpoint.pth")
    stats = checkpoint["reporter"]["stats"]
    best = min(stats, key=lambda epoch: stats[epoch]["valid"]["loss"])
    seconds = sum(
        part["time"].total_seconds()
        for epoch in stats.values()
        for part in epoch.values()
    )
    model = load_model(experiment / "config.yaml", experiment / MODEL)
    parameters = whisper_parameter_report(model)
    write_json(
        experiment / "training.json",
        {
            "epochs": len(stats),
            "best_epoch": best,
            "valid_loss": float(stats[best]["valid"]["loss"]),
            "updates": stats[max(stats)]["train"]["total_count"],
            "seconds": round(seconds, 1),
            "parameters": parameters,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S"),
        },
    )
    logging.info(
        "%s: %d updates in %.1f s; best on dev: epoch %d, loss %.3f; %d of %d "
        "parameters trained",
        *(experiment, stats[max(stats)]["train"]["total_count"], seconds, best),
        stats[best]["valid"]["loss"],
        *(parameters["trainable"], parameters["total"]),
    )
