"""Write the page of a run: what was gained, kept and lost, curves, routing, clips."""

import logging
from pathlib import Path

from espnet2_lamer.bin.common import Parser, run_main


def get_parser() -> Parser:
    """Return the argument parser."""
    from espnet2_lamer.report.experiment import CLIPS

    parser = Parser(__doc__)
    add = parser.add_argument
    add("--expdir", type=Path, default=Path("exp"), help="experiments of run.sh")
    which = "folder of another results.json, e.g. exp/results_milore"
    add("--results", type=Path, help=which)
    add("--output", type=Path, help="default: report.html beside that")
    sound = "test utterances per language to listen to; 0: the page has no sound"
    add("--clips", type=int, default=CLIPS, help=sound)
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.report.experiment import find_results, write_report

    results = find_results(args.expdir, args.results)
    place = args.expdir if args.results is None else results.parent
    output = args.output or place / "report.html"
    write_report(args.expdir, results, output, args.clips)
    size = output.stat().st_size / 1e6
    logging.info("wrote %s (%.1f MB) from %s", output, size, results)


if __name__ == "__main__":
    run_main(main)
