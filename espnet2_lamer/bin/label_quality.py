"""Measure unit labels: used classes, perplexities, agreement with phones."""

import argparse

from espnet2_lamer.bin.common import get_argument_parser, run_main


def get_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = get_argument_parser("Measure the labels of a text.km.")
    parser.add_argument("--labels", required=True, help="text.km")
    parser.add_argument("--n_clusters", type=int, required=True, help="units K")
    parser.add_argument("--phones_ctm", help="`utt 1 start_s dur_s phone` lines")
    parser.add_argument("--utt2lang", help="`utt lang` lines")
    parser.add_argument("--output", required=True, help="JSON; a .md goes beside it")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.units.quality import label_quality, write_quality

    report = label_quality(args.labels, args.n_clusters, args.phones_ctm, args.utt2lang)
    write_quality(report, args.output)


if __name__ == "__main__":
    run_main(main)
