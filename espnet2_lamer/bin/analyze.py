"""Report what a model's routers do, what its layers know, and what it forgot."""

import logging
from pathlib import Path

from espnet2_lamer.bin.common import Parser, numbers, run_main, words


def get_parser() -> Parser:
    """Return the argument parser."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="packed zip, experiment, HuBERT (as run.sh --base) or s3prl:NAME",
    )
    add(
        "--data",
        type=Path,
        required=True,
        help="directory with wav.scp and utt2lang (utt2spk, phones.ctm), manifest, or "
        "folder of audio per language",
    )
    folder = "folder; gets report.html and report.json"
    add("--output", type=Path, required=True, help=folder)
    add(
        "--base",
        help="model to compare with; default: the model with its experts switched off",
    )
    moved = "where the frozen base of an experiment is now, if it moved"
    add("--frozen_base", help=moved)
    parser.share("trust_s3prl_files")
    add("--langs", type=words, default=[], help='languages, e.g. "eng yue"; all')
    add("--max_utts", type=int, default=100, help="most utterances per language")
    layers = 'layers for CKA and phones, e.g. "6 12"; four of them'
    add("--layers", type=numbers, default=[], help=layers)
    add("--device", choices=["cpu", "cuda"], default="cpu", help="where to compute")
    add("--seed", type=int, default=0, help="of the choice, splits and intervals")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.analysis.listening import read_speech_set
    from espnet2_lamer.analysis.report import report_on, summary
    from espnet2_lamer.fileio.atomic import write_json, write_text
    from espnet2_lamer.metrics.similarity import compared_layers
    from espnet2_lamer.report.model import render_page
    from espnet2_lamer.upstream import load_model

    speech = read_speech_set(args.data, args.langs, args.max_utts, args.seed)
    model = load_model(args.model, args.frozen_base, args.trust_s3prl_files)
    report = report_on(
        model,
        load_model(args.base, None, args.trust_s3prl_files) if args.base else None,
        speech,
        compared_layers(args.layers, model.num_layers, "--layers"),
        {"model": args.model, "base": args.base},
        args.device,
        args.seed,
    )
    page = render_page(report)
    write_json(args.output / "report.json", report)
    write_text(args.output / "report.html", page)
    for line in [*report["notes"], *summary(report)]:
        logging.info("%s", line)
    logging.info("wrote %s", args.output / "report.html")


if __name__ == "__main__":
    run_main(main)
