"""Measure unit labels: used classes, perplexities, agreement with phones."""

import logging
from pathlib import Path

from espnet2_lamer.bin.common import Parser, run_main


def get_parser() -> Parser:
    """Return the argument parser."""
    parser = Parser("Measure the labels of a text.km.")
    add = parser.add_argument
    add("--labels", required=True, help="text.km")
    add("--n_clusters", type=int, required=True, help="units K")
    add("--phones_ctm", help="`utt 1 start_s dur_s phone` lines")
    add("--utt2lang", help="`utt lang` lines")
    add("--data_dir", type=Path, help="folder with utt2lang and, if known, phones.ctm")
    add("--output", required=True, help="JSON; a .md goes beside it")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.units.quality import figures, label_quality, write_quality

    phones, langs = args.phones_ctm, args.utt2lang
    if args.data_dir:
        langs = langs or args.data_dir / "utt2lang"
        there = args.data_dir / "phones.ctm"
        phones = phones or (there if there.is_file() else None)
    report = label_quality(args.labels, args.n_clusters, phones, langs)
    write_quality(report, args.output)
    logging.info("units: %s", figures(report))


if __name__ == "__main__":
    run_main(main)
