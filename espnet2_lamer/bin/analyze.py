"""Report what a model's routers do, what its layers know, and what it forgot.

Or, with --norms, how the norms of experts and routers grew in trainings.
"""

import argparse
import logging
from pathlib import Path

from espnet2_lamer.bin.common import Parser, numbers, run_main, words


def get_parser() -> Parser:
    """Return the argument parser."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "--model",
        help="packed zip, experiment, HuBERT (as run.sh --base) or s3prl:NAME",
    )
    add(
        "--data",
        type=Path,
        help="directory with wav.scp and utt2lang (utt2spk, phones.ctm), manifest, or "
        "folder of audio per language",
    )
    folder = "folder; gets report.html and report.json, or norms.{csv,json,png}"
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
    norms = (
        "instead of --model and --data: folders of trainings, files like norms.jsonl"
    )
    add("--norms", type=Path, nargs="+", help=f"{norms}, or model files")
    ends = "with --norms: pretraining YAMLs, at whose ends norms are predicted"
    add("--schedules", type=Path, nargs="+", default=[], help=ends)
    add("--device", choices=["cpu", "cuda"], default="cpu", help="where to compute")
    add("--seed", type=int, default=0, help="of the choice, splits and intervals")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    parser = get_parser()
    args = parser.parse_args(cmd)
    given = args.model, args.data
    if any(given) if args.norms else not all(given):
        parser.error("expected either --model and --data, or --norms")
    if args.norms:
        _norms(args)
        return
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


def _norms(args: argparse.Namespace) -> None:
    from espnet2_lamer.analysis.norms import (
        norms_report,
        read_courses,
        report_lines,
        schedule_end,
        write_norms,
    )

    courses = read_courses(args.norms)
    report = norms_report(courses, {str(p): schedule_end(p) for p in args.schedules})
    write_norms(courses, report, args.output)
    for line in report_lines(report):
        logging.info("%s", line)
    logging.info("wrote %s", args.output / "norms.csv")


if __name__ == "__main__":
    run_main(main)
