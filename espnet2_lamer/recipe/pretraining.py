"""Stage 7, and what stage 0 shares with it: masked-prediction training."""

import json
import logging
import os
from pathlib import Path

from espnet2_lamer.constants import num_frames
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.runs import made_from
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.layers import parameter_report
from espnet2_lamer.recipe.declaration import as_arguments, data_arguments
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.settle import (
    AUTO,
    control_settings,
    experts_options,
    read_ssl_config,
)
from espnet2_lamer.recipe.upstreams import base_path, read_checkpoints
from espnet2_lamer.tasks.hubert import LamerHubertTask
from espnet2_lamer.tasks.pretrained import load_pretraining_model
from espnet2_lamer.train.console import run_espnet
from espnet2_lamer.units.labels import check_labels, write_token_list


def write_shapes(data_dir: Path, output_dir: Path) -> None:
    """Write ``speech_shape`` (samples) and ``text_shape`` (frames) of a data dir.

    They follow from the sample counts, so no pass over the audio is needed.
    """
    samples = read_table(data_dir / "utt2num_samples")
    write_table(output_dir / "speech_shape", samples)
    write_table(
        output_dir / "text_shape",
        {utt: str(num_frames(int(n))) for utt, n in samples.items()},
    )


def write_all_shapes(options: Options) -> None:
    """Stage 6: the shape files of pretraining."""
    write_shapes(options.raw / "ssl_train", options.stats / "train")
    write_shapes(options.raw / "ssl_dev", options.stats / "valid")


def write_language_numbers(utt2lang: Path, langs: list[str], output: Path) -> None:
    """Write ``utt number``, the position of each utterance's language in ``langs``.

    Raises:
        RecipeError: A language is not among them: it would have no training data.
    """
    table = read_table(utt2lang)
    unknown = sorted(set(table.values()) - set(langs))
    if unknown:
        raise RecipeError(
            f"{utt2lang}: language {unknown[0]} does not occur in the training data "
            f"({', '.join(langs)}); take its utterances out"
        )
    write_table(output, {utt: str(langs.index(lang)) for utt, lang in table.items()})


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

    Args:
        config: YAML for ``--config``.
        train_dir: With ``wav.scp``, ``text.km``, ``utt2num_samples``, ``utt2lang``.
        dev_dir: Likewise, for validation.
        stats_dir: Where the shape files are (``train/``, ``valid/``).
        output_dir: The experiment.
        num_classes: K.
        options: More ESPnet options.
        log: Its file in the experiment.

    Raises:
        RecipeError: Labels do not fit, or training ended without a model.
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
    langs = sorted(set(read_table(train_dir / "utt2lang").values()))
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
        write_language_numbers(directory / "utt2lang", langs, stats / "utt2langid")
        data = {
            directory / "wav.scp": "speech,sound",
            directory / "text.km": "text,text",
            stats / "utt2langid": "lang,text_int",
        }
        shapes = (stats / "speech_shape", stats / "text_shape")
        command += data_arguments(part, data, shapes)
    return command


def continue_pretraining(options: Options) -> None:
    """Train the head-only control, and Lamer on the same data and updates.

    The control comes first: the other's validations show its masked accuracy.
    """
    runs = [(options.ssl_experiment, _allocation(options))]
    if options.control:
        runs.insert(0, (options.control_experiment, "0"))
    if options.control_experiment in dict(runs):
        _check_control(options)
    for experiment, allocation in runs:
        control = []
        if options.control and experiment != options.control_experiment:
            control = ["--monitor_control", str(options.control_experiment)]
        _train(options, experiment, allocation, control)
        model = load_pretraining_model(experiment)
        write_json(experiment / "parameters.json", parameter_report(model))


def check_one_batch(options: Options) -> None:
    """Can the model learn one batch?

    Raises:
        RecipeError: It could not.
    """
    experiment, more = options.ssl_experiment, ["--sanity", "true"]
    _train(options, experiment, _allocation(options), more, log="sanity.log")
    found = json.loads((experiment / "sanity.json").read_text(encoding="utf-8"))
    logging.info(
        "one batch could be learnt: %(initial_bits).3f bits before, %(final_bits).3f "
        "after %(updates)d updates, accuracy %(final_accuracy).3f",
        found,
    )


def _train(
    options: Options,
    experiment: Path,
    allocation: str,
    more: list[str],
    log: str = "train.log",
) -> None:
    command = [
        *as_arguments(encoder_conf=f"base={base_path(options)}"),
        *experts_options(allocation),
        *as_arguments(seed=options.seed, replay_langs=options.replay_langs),
        *device_options(options, experiment),
        *more,
    ]
    train_ssl(
        options.ssl_config,
        options.raw / "ssl_train",
        options.raw / "ssl_dev",
        options.stats,
        experiment,
        options.n_clusters,
        command,
        log,
    )


def _allocation(options: Options) -> str:
    if options.allocation != AUTO:
        return options.allocation
    from espnet2_lamer.recipe.auto_allocation import automatic_allocation

    return automatic_allocation(options)


def _training_options(options: Options, experiment: Path, allocation: str) -> list[str]:
    return [
        *as_arguments(encoder_conf=f"base={base_path(options)}"),
        *experts_options(allocation),
        *as_arguments(seed=options.seed, replay_langs=options.replay_langs),
        *device_options(options, experiment),
    ]


def _check_control(options: Options) -> None:
    """Note what the shared head-only control is trained from, before any training.

    Raises:
        RecipeError: There is one already that was trained from something else.
    """
    inputs = {
        "config": control_settings(read_ssl_config(options.ssl_config)),
        "base": read_checkpoints(options)["base"]["sha256"],
        "labels": sha256_file(options.raw / "ssl_train" / "text.km.json"),
        "seed": options.seed,
    }
    record = options.control_experiment / "inputs.json"
    if record.is_file() and not made_from(record, inputs):
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
    whose processes find each other through a file in the shared ``expdir``.

    Args:
        options: ``ngpu`` (per node) and ``num_nodes``.
        experiment: The training's; each has its own file.

    Raises:
        RecipeError: Several nodes are asked for, and Slurm did not start this on them.
    """
    command = ["--ngpu", str(options.ngpu)]
    if options.ngpu == 0:
        command += ["--dist_backend", "gloo"]
    if options.ngpu > 1 or options.num_nodes > 1:
        command += ["--multiprocessing_distributed", "true"]
    if options.num_nodes > 1:
        _check_step(options)
        command += as_arguments(
            dist_world_size=options.num_nodes,
            dist_launcher="slurm",
            dist_init_method=f"file://{_meeting_place(experiment)}",
        )
    return command


def _check_step(options: Options) -> None:
    nodes, tasks = (
        os.environ.get(name, "none")
        for name in ("SLURM_STEP_NUM_NODES", "SLURM_NTASKS")
    )
    if {nodes, tasks} != {str(options.num_nodes)}:
        raise RecipeError(
            f"--num_nodes: found {options.num_nodes}, but Slurm started {tasks} tasks "
            f"on {nodes} nodes; start one per node: srun --nodes={options.num_nodes} "
            f"--ntasks-per-node=1 ./run.sh --num_nodes {options.num_nodes} ..., or set "
            "train_cmd in cmd.sh"
        )


def _meeting_place(experiment: Path) -> Path:
    """A file that no earlier start has left behind: torch would wait for its ranks."""
    start = ".".join(os.environ.get(name, "0") for name in _START)
    directory = experiment.resolve().parent / "dist"
    directory.mkdir(parents=True, exist_ok=True)
    return directory / f"{experiment.name}.{start}"
