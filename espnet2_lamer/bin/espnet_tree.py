"""Lay the recipes into an ESPnet checkout, in the form that ESPnet would merge."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from espnet2_lamer.bin.common import get_argument_parser, run_main


def get_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = get_argument_parser(__doc__)
    add = parser.add_argument
    add("--checkout", type=Path, required=True, help="top directory of ESPnet")
    add("--repository", type=Path, default=Path(), help="top directory of this project")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.export.espnet_tree import lay_tree

    written = lay_tree(args.repository, args.checkout)
    logging.info("%s: %d files written", args.checkout, len(written))


if __name__ == "__main__":
    run_main(main)
