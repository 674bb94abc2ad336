"""Turn a trained model into a form that others can load."""

import argparse
import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from espnet2_lamer.bin.common import Parser, run_main
from espnet2_lamer.errors import RecipeError, require
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.fileio.text import read_text
from espnet2_lamer.fileio.trust import S3PRL_PREFIX
from espnet2_lamer.recipe.declaration import READERS

#: Files of ``--wav_scp`` that a submission is tried with.
MOST_AUDIO = 8


def get_parser() -> Parser:
    """Return the argument parser."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "--kind",
        choices=[
            *("adapter", "challenge", "ctranslate2", "dense", "hf", "onnx", "openai"),
            *("s3prl", "zoo"),
        ],
        default="zoo",
        help="zoo: an ESPnet model-zoo zip; s3prl: a checkpoint and an upstream to "
        "drop into an S3PRL checkout; hf: a directory for transformers; dense: the "
        "same as a plain HubertModel for one language; onnx: a directory with the "
        "states as an ONNX graph, float32 and int8; adapter: what was trained "
        "beside the frozen base, as one safetensors file; challenge: a folder that "
        "runs alone, for ML-SUPERB 2.0's challenge. Of an experiment with "
        "Whisper, its LoRA merged: openai: a .pt file for openai-whisper; hf: a "
        "directory for transformers; ctranslate2: one for CTranslate2 and "
        "faster-whisper",
    )
    add(
        "--task",
        choices=["asr", "ssl"],
        help="asr: a fine-tuned ASR or LID model; ssl: a continually pretrained one; "
        "default: what the experiment is",
    )
    add(
        "--experiment",
        type=Path,
        required=True,
        help="directory with config.yaml and weights, or with final/ of these; s3prl, "
        "hf, dense and onnx also take a packed zip, hf, dense and onnx what else "
        "load_model takes",
    )
    add("--model_file", help="its weights; default: its best model")
    add("--output", type=Path, required=True, help="the file or directory to write")
    add("--base", help="where the frozen base is now, if it moved")
    add(
        "--language",
        help="dense, onnx: whose speech the experts are mixed for; onnx without it "
        "keeps the routers; Whisper: whose expert",
    )
    add(
        "--wav_scp",
        help="dense: speech of it; utt2lang beside selects; onnx: also speech to "
        "compare with, instead of noise; challenge: speech to try, beside noise",
    )
    add("--layer", type=int, help="onnx: the last state in the graph; default: all")
    add("--int8", type=READERS[bool], default=True, help="onnx: an int8 file as well")
    add("--option", type=Path, action="append", default=[], help="file to add; repeat")
    add("--results", type=Path, help="RESULTS.md for zip and model card")
    add("--name", help="name in the model card; default: the zip's")
    add("--languages", nargs="*", default=[], help="ISO 639-3 codes for the card")
    add("--license", default="apache-2.0", help="licence of the weights (HF id)")
    add("--note", action="append", default=[], help="line for the card; repeat")
    add(
        "--codebook",
        type=Path,
        help="codebook.npz of the units; zoo: its hash goes into meta.yaml, adapter: "
        "all of it",
    )
    name = "adapter: name under which others find the base, e.g. its Hugging Face id"
    add("--base_name", help=name)
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.export.adapter import write_adapter
    from espnet2_lamer.export.card import Origin
    from espnet2_lamer.export.dense import language_speech, write_dense
    from espnet2_lamer.export.huggingface import write_huggingface
    from espnet2_lamer.export.s3prl import write_s3prl

    experiment, output, epoch_file = args.experiment, args.output, args.model_file
    origin = Origin(args.name, args.languages, args.license, args.note)
    match args.kind:
        case "zoo":
            _pack(args, replace(origin, name=args.name or output.stem))
        case "s3prl":
            write_s3prl(experiment, output, epoch_file, args.base)
        case "openai" | "ctranslate2":
            _write_whisper(args, origin)
        case "hf" if _is_whisper(experiment):
            _write_whisper(args, origin)
        case "hf":
            write_huggingface(_model(args), output, origin)
        case "dense":
            if args.language is None or args.wav_scp is None:
                raise RecipeError("--kind dense needs --language and --wav_scp")
            speech = language_speech(args.wav_scp, args.language)
            write_dense(_model(args), output, args.language, speech, origin)
        case "onnx":
            _write_onnx(args, origin)
        case "challenge":
            _write_challenge(args, origin)
        case "adapter":
            write_adapter(
                experiment,
                output,
                origin,
                epoch_file=epoch_file,
                base=args.base,
                base_name=args.base_name,
                codebook=args.codebook,
            )
    logging.info("wrote %s", output)


def _pack(args: argparse.Namespace, origin: Any) -> None:
    from espnet2_lamer.convert.espnet_experiment import CONFIG, model_file
    from espnet2_lamer.evaluation.recogniser_files import extra_files, lm_files
    from espnet2_lamer.export.card import model_card
    from espnet2_lamer.export.zoo import pack_model, write_full_model

    directory = args.experiment
    if (directory / "final" / CONFIG).is_file():
        directory = directory / "final"
    config = directory / CONFIG
    if not config.is_file():
        raise RecipeError(f"{config}: file not found; expected a trained experiment")
    options, results, metadata = list(args.option), None, {}
    if args.results is not None:
        if not args.results.is_file():
            raise RecipeError(
                f"{args.results}: file not found; the recipe writes it with its tables"
            )
        options.append(args.results)
        results = read_text(args.results)
    if args.codebook is not None:
        metadata["codebook_sha256"] = sha256_file(args.codebook)
    settings = read_yaml(config)
    # Only a pretraining has units.
    task = "ssl" if "num_classes" in settings else "asr"
    if args.task not in (None, task):
        raise RecipeError(
            f"--task: found {args.task}, but {config} is of task {task}: leave it out"
        )
    weights = model_file(directory, settings, args.model_file)
    given = {path.resolve() for path in options}
    options += [p for p in extra_files(directory) if p.resolve() not in given]
    with tempfile.TemporaryDirectory() as scratch:
        if task == "ssl" and settings["encoder_conf"].get("base"):
            config, weights = write_full_model(
                directory, scratch, epoch_file=args.model_file, base=args.base
            )
        pack_model(
            task,
            config,
            weights,
            args.output,
            options=options,
            card=model_card(task, origin, results=results),
            metadata=metadata,
            lm=lm_files(directory) if task == "asr" else None,
        )


def _is_whisper(experiment: Path) -> bool:
    from espnet2_lamer.convert.espnet_experiment import CONFIG, read_config
    from espnet2_lamer.fileio.archive import check_zip

    if experiment.suffix == ".zip":
        return "asr_model_file" in check_zip(experiment)["files"]
    there = (experiment / CONFIG).is_file()
    return there and read_config(experiment).get("model") == "whisper_lora"


def _write_whisper(args: argparse.Namespace, origin: Any) -> None:
    require("whisper", f"--kind {args.kind} of a Whisper")
    from espnet2_lamer.export.whisper import write_whisper

    write_whisper(
        args.kind, args.experiment, args.output, origin, args.model_file, args.language
    )


def _write_challenge(args: argparse.Namespace, origin: Any) -> None:
    from espnet2_lamer.export.challenge import write_challenge
    from espnet2_lamer.fileio.datadir import read_table

    audio = list(read_table(args.wav_scp).values())[:MOST_AUDIO] if args.wav_scp else []
    write_challenge(args.experiment, args.output, origin, audio)


def _write_onnx(args: argparse.Namespace, origin: Any) -> None:
    require("onnxscript", "--kind onnx")
    from espnet2_lamer.export.dense import language_speech, merge_experts, mixed_for
    from espnet2_lamer.export.features import read_waveform
    from espnet2_lamer.export.onnx import MOST_SPEECH, can_be_merged, write_onnx

    if args.language is not None and args.wav_scp is None:
        raise RecipeError("--language of --kind onnx needs --wav_scp, speech of it")
    model, about = _model(args), ""
    paths = language_speech(args.wav_scp, args.language) if args.wav_scp else []
    if args.language is not None:
        model = mixed_for(model, paths[::2], args.language)
        about = f"Experts averaged over {args.language} speech and merged: for it only."
    elif can_be_merged(model):
        model = merge_experts(model, {})
        about = "The LoRA of every layer is merged into its weights, exactly."
    speech = [read_waveform(path) for path in (paths[1::2] or paths)[:MOST_SPEECH]]
    write_onnx(
        *(model, args.output),
        speech=speech,
        last=args.layer,
        int8=args.int8,
        origin=origin,
        about=about,
    )


def _model(args: argparse.Namespace) -> Any:
    from espnet2_lamer.upstream import load_model

    if str(args.experiment).startswith(S3PRL_PREFIX):
        raise RecipeError(
            f"--experiment: found {str(args.experiment)!r}, expected a model of this "
            "package: S3PRL has its own upstreams already"
        )
    # A Hugging Face id is one, as a path, too.
    return load_model(str(args.experiment / (args.model_file or "")), base=args.base)


if __name__ == "__main__":
    run_main(main)
