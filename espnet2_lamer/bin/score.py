"""Score hypotheses against references: error rate with its interval, as JSON."""

import argparse
import logging
from pathlib import Path

from espnet2_lamer.bin.common import get_argument_parser, run_main
from espnet2_lamer.evaluation.scoring import score_files
from espnet2_lamer.evaluation.text_units import UNITS
from espnet2_lamer.fileio.atomic import write_json


def get_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = get_argument_parser(__doc__)
    parser.add_argument(
        "--ref", type=Path, required=True, help="reference, 'utt_id text' lines"
    )
    parser.add_argument(
        "--hyp", type=Path, required=True, help="hypotheses of the same utterances"
    )
    parser.add_argument(
        "--unit",
        choices=UNITS,
        required=True,
        help="char counts a space as a token; the others split on spaces",
    )
    parser.add_argument(
        "--json", type=Path, required=True, help="where to write the figures"
    )
    parser.add_argument(
        "--remove_tags",
        action="store_true",
        help="leave out language tags such as [eng], as ESPnet does with nlsyms",
    )
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Score ``--hyp`` against ``--ref`` and write ``--json``."""
    args = get_parser().parse_args(cmd)
    score = score_files(args.ref, args.hyp, args.unit, remove_tags=args.remove_tags)
    write_json(args.json, score.summary())
    low, high = score.interval
    logging.info(
        "%s: %s error rate %.2f %% [%.2f, %.2f], %d errors in %d tokens of "
        "%d utterances",
        args.hyp,
        args.unit,
        score.error_rate,
        low,
        high,
        score.total.errors,
        score.total.ref_length,
        score.utterances,
    )


if __name__ == "__main__":
    run_main(main)
