"""Score hypotheses against references: error rate with its interval, as JSON.

Forms of one character (composed or not, full-width or not) are equal, and marks without
a width do not count, as in the recipe. Case and punctuation count, unlike there, unless
``--text_norm`` takes them away first.
"""

import logging
from pathlib import Path

from espnet2_lamer.bin.common import Parser, run_main
from espnet2_lamer.evaluation.scoring import score_files
from espnet2_lamer.evaluation.text_units import NORMALISATIONS, UNITS, unify_spelling
from espnet2_lamer.fileio.atomic import write_json


def get_parser() -> Parser:
    """Return the argument parser."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--ref", type=Path, required=True, help="reference, 'utt_id text' lines")
    add("--hyp", type=Path, required=True, help="hypotheses of the same utterances")
    unit = "char counts a space as a token; the others split on spaces"
    add("--unit", choices=UNITS, required=True, help=unit)
    add("--json", type=Path, required=True, help="where to write the figures")
    norm = "on both sides, before anything: unicode (no punctuation of any script, "
    norm += "upper case), official (ASCII's alone, as ML-SUPERB's scripts)"
    add("--text_norm", choices=NORMALISATIONS, help=norm)
    tags = "leave out language tags such as [eng], as ESPnet does with nlsyms"
    add("--remove_tags", action="store_true", help=tags)
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Score ``--hyp`` against ``--ref`` and write ``--json``."""
    args = get_parser().parse_args(cmd)
    normalize = NORMALISATIONS[args.text_norm][0] if args.text_norm else unify_spelling
    how = {"remove_tags": args.remove_tags, "normalize": normalize}
    score = score_files(args.ref, args.hyp, args.unit, **how)
    write_json(args.json, score.summary())
    low, high = score.interval
    rate = f"{score.error_rate:.2f} % [{low:.2f}, {high:.2f}]"
    size = f"{score.total.ref_length} tokens of {score.utterances} utterances"
    what = f"{args.unit} error rate {rate}, {score.total.errors} errors in {size}"
    what += f"; {score.sclite_rate:.2f} % as sclite counts; "
    what += (
        f"text normalisation {args.text_norm}"
        if args.text_norm
        else ("case and punctuation count, forms of one character do not")
    )
    logging.info("%s: %s", args.hyp, what)


if __name__ == "__main__":
    run_main(main)
