"""Lay the recipes into an ESPnet checkout, or write what ESPnet would be sent."""

import logging
from pathlib import Path

from espnet2_lamer.bin.common import Parser, run_main


def get_parser() -> Parser:
    """Return the argument parser."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--checkout", type=Path, required=True, help="top directory of ESPnet")
    add("--repository", type=Path, default=Path(), help="top directory of this project")
    add(
        "--pull_request",
        metavar="FOLDER",
        type=Path,
        help="leave the checkout alone; write FOLDER/core, the change of espnet2, and "
        "FOLDER/recipe",
    )
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    if args.pull_request is not None:
        from espnet2_lamer.export.espnet_pull_request import write_pull_request

        write_pull_request(args.repository, args.checkout, args.pull_request)
        return
    from espnet2_lamer.export.espnet_tree import lay_tree

    written = lay_tree(args.repository, args.checkout)
    logging.info("%s: %d files written", args.checkout, len(written))


if __name__ == "__main__":
    run_main(main)
