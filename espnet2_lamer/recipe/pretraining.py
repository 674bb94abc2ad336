"""Stage 7, and what stage 0 shares with it: masked-prediction training."""

import json
import logging
from pathlib import Path

from espnet2_lamer.constants import num_frames
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.runs import made_from
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.recipe.checkpoints import base_path, read_checkpoints
from espnet2_lamer.recipe.devices import device_options
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.ssl_config import (
    AUTO,
    control_settings,
    experts_options,
    read_ssl_config,
)
from espnet2_lamer.tasks.pretrained import load_pretraining_model
from espnet2_lamer.train.console import espnet_log
from espnet2_lamer.train.signals import STOP_SIGNALS
from espnet2_lamer.units.labels import check_labels, write_token_list


def write_shapes(data_dir: Path, output_dir: Path) -> None:
    """Write ``speech_shape`` (samples) and ``text_shape`` (frames) of a data dir.

    They follow from the sample counts, so no pass over the audio is needed.
    """
    samples = read_table(data_dir / "utt2num_samples", "stage 2")
    write_table(output_dir / "speech_shape", samples)
    write_table(
        output_dir / "text_shape",
        {utt: str(num_frames(int(n))) for utt, n in samples.items()},
    )


def write_language_numbers(utt2lang: Path, langs: list[str], output: Path) -> None:
    """Write ``utt number``, the position of each utterance's language in ``langs``.

    Raises:
        RecipeError: A language is not among them: it would have no training data.
    """
    table = read_table(utt2lang, "stage 2")
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
) -> Path:
    """Train through ``LamerHubertTask`` in this process; resume if interrupted.

    Args:
        config: YAML for ``--config``.
        train_dir: With ``wav.scp``, ``text.km``, ``utt2num_samples``, ``utt2lang``.
        dev_dir: Likewise, for validation.
        stats_dir: Where the shape files are (``train/``, ``valid/``).
        output_dir: The experiment.
        num_classes: K.
        options: More ESPnet options.

    Returns:
        The best model file.

    Raises:
        RecipeError: Labels do not fit, or training ended without a model.
    """
    command = _data_options(train_dir, dev_dir, stats_dir, num_classes)
    command += ["--config", str(config), "--output_dir", str(output_dir)]
    logging.info("training %s, log: %s", output_dir, output_dir / "train.log")
    _run_task([*command, *options], output_dir, "train.log")
    best = output_dir / "valid.loss_m.best.pth"
    if not best.exists():
        raise RecipeError(
            f"{output_dir}: training ended without {best.name}; see the log above it"
        )
    return best


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
    langs = sorted(set(read_table(train_dir / "utt2lang", "stage 2").values()))
    command = [
        *("--num_classes", str(num_classes)),
        *("--token_list", str(token_list)),
        *("--use_preprocessor", "true"),
        *("--resume", "true"),
        *("--write_collected_feats", "false"),
        *("--langs", *langs),
    ]
    for part, split, directory in (
        ("train", "train", train_dir),
        ("valid", "valid", dev_dir),
    ):
        numbers = stats_dir / split / "utt2langid"
        write_language_numbers(directory / "utt2lang", langs, numbers)
        command += [
            f"--{part}_data_path_and_name_and_type",
            f"{directory / 'wav.scp'},speech,sound",
            f"--{part}_data_path_and_name_and_type",
            f"{directory / 'text.km'},text,text",
            f"--{part}_data_path_and_name_and_type",
            f"{numbers},lang,text_int",
            *(f"--{part}_shape_file", str(stats_dir / split / "speech_shape")),
            *(f"--{part}_shape_file", str(stats_dir / split / "text_shape")),
        ]
    return command


def _run_task(command: list[str], output_dir: Path, log: str) -> None:
    """Run ``LamerHubertTask``; its messages go into a file of the experiment."""
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    with espnet_log(output_dir / log, output_dir.name):
        try:
            LamerHubertTask.main(cmd=command)
        except SystemExit as error:
            if error.code in [128 + number for number in STOP_SIGNALS]:
                # Asked to stop from outside; the trainer has written a checkpoint.
                raise
            raise RecipeError(
                f"{output_dir}: ESPnet refused its options; see {output_dir / log}"
            ) from error


def continue_pretraining(options: Options) -> None:
    """Stage 7: the head-only control, and Lamer on the same data and updates.

    The control comes first: the other's validations show its masked accuracy.
    """
    from espnet2_lamer.layers import parameter_report

    runs = [(options.ssl_experiment, _allocation(options))]
    if options.control:
        runs.insert(0, (options.control_experiment, "0"))
    if options.control_experiment in dict(runs):
        _check_control(options)
    for experiment, allocation in runs:
        control = []
        if options.control and experiment != options.control_experiment:
            control = ["--monitor_control", str(options.control_experiment)]
        train_ssl(
            options.ssl_config,
            options.raw / "ssl_train",
            options.raw / "ssl_dev",
            options.stats,
            experiment,
            options.n_clusters,
            [*_training_options(options, experiment, allocation), *control],
        )
        model = load_pretraining_model(experiment)
        write_json(experiment / "parameters.json", parameter_report(model))


def check_one_batch(options: Options) -> None:
    """Stage 7 with ``--sanity true``: can the model learn one batch?

    Raises:
        RecipeError: It could not.
    """
    experiment = options.ssl_experiment
    command = _data_options(
        options.raw / "ssl_train",
        options.raw / "ssl_dev",
        options.stats,
        options.n_clusters,
    )
    command += ["--config", str(options.ssl_config), "--output_dir", str(experiment)]
    command += _training_options(options, experiment, _allocation(options))
    command += ["--sanity", "true"]
    logging.info("one batch again and again, log: %s", experiment / "sanity.log")
    _run_task(command, experiment, "sanity.log")
    found = json.loads((experiment / "sanity.json").read_text(encoding="utf-8"))
    logging.info(
        "one batch could be learnt: %.3f bits before, %.3f after %d updates, accuracy "
        "%.3f",
        *(found[k] for k in ("initial_bits", "final_bits", "updates")),
        found["final_accuracy"],
    )


def _allocation(options: Options) -> str:
    if options.allocation != AUTO:
        return options.allocation
    from espnet2_lamer.recipe.auto_allocation import automatic_allocation

    return automatic_allocation(options)


def _training_options(options: Options, experiment: Path, allocation: str) -> list[str]:
    return [
        *("--encoder_conf", f"base={base_path(options)}"),
        *experts_options(allocation),
        *("--seed", str(options.seed)),
        *("--replay_langs", *options.replay_langs),
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


def experiments(options: Options) -> list[Path]:
    """The experiments of stage 7."""
    control = [options.control_experiment] if options.control else []
    return [options.ssl_experiment, *control]
