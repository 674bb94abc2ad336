"""What the command lines ``local/<corpus>.py`` of public corpora share."""

import argparse
import os

from espnet2_lamer.bin.common import get_argument_parser
from espnet2_lamer.data.corpora import CORPORA
from espnet2_lamer.errors import RecipeError


def get_corpus_parser(corpus: str, description: str, root: str):
    """Return a parser with the options that every corpus has.

    Args:
        corpus: Name in ``espnet2_lamer.data.corpora.CORPORA``.
        description: First line of ``--help``.
        root: What ``--root`` points to.
    """
    variable = CORPORA[corpus]
    parser = get_argument_parser(description)
    parser.add_argument(
        "--root",
        default=os.environ.get(variable, ""),
        help=f"{root}; default: {variable} of db.sh",
    )
    parser.add_argument(
        "--output",
        default="data",
        help="data folder; sets go to pretrain/ and eval/ in it, and the recipe joins "
        "those of all corpora",
    )
    parser.add_argument("--langs", default="eng cmn yue", help="ISO 639-3 codes to use")
    parser.add_argument(
        "--max_missing",
        type=_percent,
        default=1.0,
        help="most missing or defective rows per set, in per cent",
    )
    parser.add_argument("--nj", type=int, default=1, help="threads that look at files")
    return parser


def _percent(text: str) -> float:
    percent = float(text)
    if not 0 <= percent <= 100:
        raise argparse.ArgumentTypeError(f"expected 0 to 100, found {text}")
    return percent


def corpus_arguments(corpus: str, args: argparse.Namespace) -> dict:
    """Return the keyword arguments of the corpus' ``prepare``.

    Raises:
        RecipeError: Nothing says where the corpus is.
    """
    if not args.root:
        raise RecipeError(
            f"{corpus}: nothing says where it is; set {CORPORA[corpus]} in db.sh (or "
            "in the environment), or give --root"
        )
    return {
        "root": args.root,
        "output_dir": args.output,
        "langs": args.langs.split(),
        "max_missing": args.max_missing,
        "nj": args.nj,
    }
