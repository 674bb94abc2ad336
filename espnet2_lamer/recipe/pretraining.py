"""Stages 6 and 7, and what stage 0 shares with them: masked-prediction training."""

import json
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from espnet2_lamer.analysis.language_probe import fisher_ratio
from espnet2_lamer.constants import SAMPLE_RATE, num_frames
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.runs import made_from
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.datadir import iterate_table, read_table, write_lines
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.fileio.locks import exclusive
from espnet2_lamer.fileio.prints import audio_digest
from espnet2_lamer.layers import parameter_report, parse_allocation
from espnet2_lamer.layers.apportion import apportion
from espnet2_lamer.recipe.analysis import by_language, draw, read_speech
from espnet2_lamer.recipe.data import check_evaluation
from espnet2_lamer.recipe.declaration import as_arguments, data_arguments
from espnet2_lamer.recipe.files import ssl_audio
from espnet2_lamer.recipe.learnt_allocation import learnt_allocation
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.schedule import Schedule, own_schedule, schedule_by_hours
from espnet2_lamer.recipe.settle import (
    AUTO,
    LEARNT,
    control_settings,
    experts_options,
    own_allocation,
)
from espnet2_lamer.recipe.upstreams import base_path, read_checkpoints
from espnet2_lamer.tasks.hubert import LamerHubertTask
from espnet2_lamer.tasks.pretrained import load_pretraining_model
from espnet2_lamer.train.console import run_espnet
from espnet2_lamer.units.labels import check_labels, write_token_list
from espnet2_lamer.upstream import load_model


def write_shapes(data_dir: Path, output_dir: Path) -> None:
    """Write ``speech_shape`` (samples) and ``text_shape`` (frames) of a data dir.

    They follow from the sample counts, so no pass over the audio is needed.
    """
    samples = data_dir / "utt2num_samples"
    frames = ((utt, str(num_frames(int(n)))) for utt, n in iterate_table(samples))
    write_lines(output_dir / "speech_shape", iterate_table(samples))
    write_lines(output_dir / "text_shape", frames)


def write_all_shapes(options: Options) -> None:
    """Stage 6: the shape files of pretraining."""
    write_shapes(options.ssl_train, options.stats / "train")
    write_shapes(options.ssl_dev, options.stats / "valid")


def train_ssl(
    config: Path,
    train_dir: Path,
    dev_dir: Path,
    stats_dir: Path,
    output_dir: Path,
    num_classes: int,
    options: list[str],
    log: str = "train.log",
) -> None:
    """Train through ``LamerHubertTask`` in this process; resume if interrupted.

    Data dirs hold ``wav.scp``, ``text.km``, ``utt2num_samples`` and ``utt2lang``,
    ``stats_dir`` the shape files of ``train`` and ``valid``. ``options`` are ESPnet's.

    Raises:
        RecipeError: Labels do not fit.
    """
    command = _data_options(train_dir, dev_dir, stats_dir, num_classes)
    command += ["--config", str(config), "--output_dir", str(output_dir), *options]
    logging.info("training %s, log: %s", output_dir, output_dir / log)
    run_espnet(LamerHubertTask, "hubert_train", command, output_dir / log)


def _data_options(
    train_dir: Path, dev_dir: Path, stats_dir: Path, num_classes: int
) -> list[str]:
    """Check labels, write what ESPnet wants to read, and name it to ESPnet."""
    codebook = None
    for directory in (train_dir, dev_dir):
        samples = directory / "utt2num_samples"
        labels = check_labels(directory / "text.km", num_classes, samples, codebook)
        # Units of two codebooks with one K would train, to no good.
        codebook = labels["codebook_sha256"]
    token_list = stats_dir / "tokens.txt"
    write_token_list(token_list, num_classes)
    langs = sorted({lang for _, lang in iterate_table(train_dir / "utt2lang")})
    command = as_arguments(
        num_classes=num_classes,
        token_list=token_list,
        use_preprocessor=True,
        resume=True,
        write_collected_feats=False,
        langs=langs,
    )
    for part, directory in (("train", train_dir), ("valid", dev_dir)):
        stats = stats_dir / part
        utt2lang = directory / "utt2lang"
        unknown = sorted({lang for _, lang in iterate_table(utt2lang)} - {*langs})
        if unknown:
            raise RecipeError(
                f"{utt2lang}: language {unknown[0]} does not occur in "
                f"the training data ({', '.join(langs)}); take its utterances out"
            )
        numbers = (
            (utt, str(langs.index(lang))) for utt, lang in iterate_table(utt2lang)
        )
        write_lines(stats / "utt2langid", numbers)
        data = {
            directory / "wav.scp": "speech,sound",
            directory / "text.km": "text,text",
            stats / "utt2langid": "lang,text_int",
        }
        shapes = (stats / "speech_shape", stats / "text_shape")
        command += data_arguments(part, data, shapes)
    return command


def pretrain(options: Options) -> None:
    """Stage 7, if what the stages after it read is there."""
    check_evaluation(options)
    continue_pretraining(options)


def continue_pretraining(options: Options, start: Sequence[str] = ()) -> None:
    """Train the head-only control, and Lamer on the same data and updates.

    The control comes first: the other's validations show its masked accuracy. Lamer
    gets ``start``, more of ESPnet's options.
    """
    runs = [(options.ssl_experiment, _experts(options))]
    if options.control:
        runs.insert(0, (options.control_experiment, experts_options("0")))
    for experiment, experts in runs:
        is_control = experiment == options.control_experiment
        more = [] if is_control else [*start]
        # Another pretraining beside this one may be training the same control.
        with exclusive(experiment, wait=is_control):
            if is_control:
                _check_control(options)
            elif options.control:
                more += ["--monitor_control", str(options.control_experiment)]
            _train(options, experiment, experts, more)
            model = load_pretraining_model(experiment)
            write_json(experiment / "parameters.json", parameter_report(model))


def check_one_batch(options: Options) -> None:
    """Refuse a model that cannot learn one batch."""
    experiment, more = options.ssl_experiment, ["--sanity", "true"]
    _train(options, experiment, _experts(options), more, log="sanity.log")
    found = json.loads((experiment / "sanity.json").read_text(encoding="utf-8"))
    logging.info(
        "one batch could be learnt: %(initial_bits).3f bits before, %(final_bits).3f "
        "after %(updates)d updates, accuracy %(final_accuracy).3f",
        found,
    )


def _train(
    options: Options,
    experiment: Path,
    experts: list[str],
    more: list[str],
    log: str = "train.log",
) -> None:
    command = [
        *as_arguments(encoder_conf=f"base={base_path(options)}"),
        *experts,
        *as_arguments(seed=options.seed, replay_langs=options.replay_langs),
        *device_options(options, experiment),
        *_schedule_options(options),
        *as_arguments(feature_cache_dir=options.dumpdir / "feature_cache"),
        *more,
    ]
    train_ssl(
        options.ssl_config,
        options.ssl_train,
        options.ssl_dev,
        options.stats,
        experiment,
        options.n_clusters,
        command,
        log,
    )


def _schedule_options(options: Options) -> list[str]:
    """ESPnet's options of the schedule that ``--passes`` asks for, if it does."""
    if not options.passes:
        return []
    config = read_yaml(options.ssl_config)
    hours, found = _by_hours(options, config)
    logging.info(
        "--passes %g over %.2f h: %d updates in %d epochs, warm-up %d",
        options.passes,
        hours,
        found.updates,
        found.epochs,
        found.warm_up,
    )
    return found.arguments(config)


def _by_hours(options: Options, config: dict[str, Any]) -> tuple[float, Schedule]:
    table = options.raw / "ssl_train" / "utt2num_samples"
    hours = sum(int(n) for _, n in iterate_table(table)) / SAMPLE_RATE / 3600
    return hours, schedule_by_hours(hours, options.passes, config)


def _experts(options: Options) -> list[str]:
    """ESPnet's options of the experts, found now where they come from the data."""
    if options.allocation == AUTO:
        return experts_options(automatic_allocation(options))
    if options.allocation != LEARNT:
        return experts_options(options.allocation)
    config = read_yaml(options.ssl_config)
    passes = options.passes
    schedule = _by_hours(options, config)[1] if passes else own_schedule(config)
    with exclusive(options.ssl_experiment):
        return learnt_allocation(options, schedule.updates, partial(_train, options))


def _check_control(options: Options) -> None:
    """Note what the shared head-only control is trained from, or refuse another."""
    inputs = {
        "config": control_settings(read_yaml(options.ssl_config)),
        "base": read_checkpoints(options)["base"]["sha256"],
        "labels": sha256_file(options.ssl_train / "text.km.json"),
        "audio": audio_digest(tables := ssl_audio(options)),
        "seed": options.seed,
    }
    if options.passes:
        inputs["passes"] = options.passes
    record = options.control_experiment / "inputs.json"
    if record.is_file() and not made_from(record, inputs, tables):
        found = json.loads(record.read_text(encoding="utf-8"))
        other = [key for key in inputs if found.get(key) != inputs[key]]
        raise RecipeError(
            f"{record}: the head-only control there was trained from another "
            f"{', '.join(other)}; use another --expdir, move it away, or leave the "
            "control out with --control false"
        )
    write_json(record, inputs)


# What tells one start of a training from another on the same nodes.
_START = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")


def device_options(options: Options, experiment: Path) -> list[str]:
    """Name devices and processes of a training to ESPnet.

    One process per GPU; on several nodes one recipe per node, started by ``srun``,
    whose processes find each other through a file in the shared ``expdir``, of which
    each training has its own.

    Raises:
        RecipeError: Several nodes are asked for, and Slurm did not start this on them.
    """
    command = ["--ngpu", str(options.ngpu)]
    if options.ngpu == 0:
        command += ["--dist_backend", "gloo"]
    if options.ngpu > 1 or options.num_nodes > 1:
        command += ["--multiprocessing_distributed", "true"]
    if options.num_nodes == 1:
        return command
    nodes = os.environ.get("SLURM_STEP_NUM_NODES", "none")
    tasks = os.environ.get("SLURM_NTASKS", "none")
    if {nodes, tasks} != {str(options.num_nodes)}:
        raise RecipeError(
            f"--num_nodes: found {options.num_nodes}, but Slurm started {tasks} tasks "
            f"on {nodes} nodes; start one per node: srun --nodes={options.num_nodes} "
            f"--ntasks-per-node=1 {options.command()}, or set train_cmd in cmd.sh"
        )
    # A file that no earlier start has left behind: torch would wait for its ranks.
    start = ".".join(os.environ.get(name, "0") for name in _START)
    directory = experiment.resolve().parent / "dist"
    directory.mkdir(parents=True, exist_ok=True)
    return command + as_arguments(
        dist_world_size=options.num_nodes,
        dist_launcher="slurm",
        dist_init_method=f"file://{directory / experiment.name}.{start}",
    )


#: Utterances per language whose states are compared, and how much of each is heard.
UTTERANCES = 50
_SECONDS = 10
_CRITERION = (
    "language separability: Fisher's ratio of the traces of between-language and "
    "within-language scatter of utterance means of the base's states"
)


def automatic_allocation(options: Options) -> str:
    """Place the experts of ``--ssl_config`` by how well layers tell languages apart.

    The number of experts is that of the config's own allocation. Layer l gets the
    fewest that routing needs (top_k, 1 for soft routing) and a share of the rest in
    proportion to the Fisher ratio of languages in its states
    (:func:`~espnet2_lamer.analysis.language_probe.fisher_ratio`), computed of the
    frozen base on a seeded sample of the pretraining speech. Written to
    ``allocation.json`` of the experiment; returned separated by commas.

    Raises:
        RecipeError: Speech of two languages is missing, or the experts are too few.
    """
    config = read_yaml(options.ssl_config)
    scheme = own_allocation(config)
    directory = options.raw / "ssl_train"
    chosen = _sample(directory, config.get("exclude_langs") or [], options.seed)
    model = load_model(base_path(options)).to(options.device)
    try:
        budget = sum(parse_allocation(scheme or "", model.num_layers))
        means = _utterance_means(model, directory, chosen, options.device)
        criterion = [
            fisher_ratio({lang: x[:, layer] for lang, x in means.items()})
            for layer in range(1, model.num_layers + 1)
        ]
        minimum = config["encoder_conf"]["lamer"].get("top_k", 2) or 1
        counts = apportion(budget, criterion, minimum)
    except ValueError as error:
        raise RecipeError(
            f"--allocation auto: {options.ssl_config}: {error}"
        ) from error
    path = options.ssl_experiment / "allocation.json"
    found = {
        "allocation": counts,
        "criterion": _CRITERION,
        "criterion_per_layer": criterion,
        "budget": budget,
        "budget_of": scheme,
        "minimum": minimum,
        "utterances": {lang: len(utts) for lang, utts in chosen.items()},
        "seed": options.seed,
        "base_sha256": read_checkpoints(options)["base"]["sha256"],
    }
    write_json(path, found)
    allocation = ",".join(map(str, counts))
    logging.info(
        "--allocation auto: %s, as many experts as %s; separability per layer %s; %s",
        allocation,
        scheme,
        " ".join(f"{value:.3f}" for value in criterion),
        path,
    )
    return allocation


def _sample(directory: Path, excluded: list[str], seed: int) -> dict[str, list[str]]:
    utt2lang = directory / "utt2lang"
    found = by_language(read_table(utt2lang))
    by_lang = {lang: found[lang] for lang in sorted(set(found) - set(excluded))}
    if len(by_lang) < 2:
        raise RecipeError(
            f"--allocation auto: {utt2lang}: found "
            f"{', '.join(by_lang) or 'no language'}, expected speech of two or more "
            "languages to tell apart; name counts, e.g. --allocation 2,4,6,8"
        )
    # As many of each, or the criterion would follow the sizes of the languages.
    few = min(by_lang, key=lambda lang: len(by_lang[lang]))
    size = min(UTTERANCES, len(by_lang[few]))
    if size < 2:
        raise RecipeError(
            f"--allocation auto: {utt2lang}: found {size} utterance of {few}, expected "
            "2 or more of every language"
        )
    rng = np.random.default_rng(seed)
    return {lang: draw(utts, size, rng) for lang, utts in by_lang.items()}


def _utterance_means(
    model: torch.nn.Module,
    directory: Path,
    chosen: dict[str, list[str]],
    device: str,
) -> dict[str, NDArray[np.float64]]:
    """Mean over frames of every state: per language ``[utterances, L + 1, D]``."""
    audio = read_table(directory / "wav.scp")
    means: dict[str, list[NDArray[np.float64]]] = {}
    langs = {utt: lang for lang, utts in chosen.items() for utt in utts}
    for utt, wav, length in read_speech(audio, langs, "separability", _SECONDS):
        states, _ = model.extract_features(wav.to(device), length.to(device))
        mean = torch.stack([state[0].double().mean(0) for state in states])
        means.setdefault(langs[utt], []).append(mean.cpu().numpy())
    return {lang: np.stack(rows) for lang, rows in means.items()}
