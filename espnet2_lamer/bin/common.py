"""What every command line shares: logging, exit codes, parser style."""

import argparse
import logging
import sys
from collections.abc import Callable

from espnet2_lamer.errors import RecipeError


def get_argument_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser whose ``--help`` shows defaults."""
    return argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def add_parallel_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--nj``, ``--dask`` and ``--device``."""
    parser.add_argument("--nj", type=int, default=1, help="processes of this machine")
    parser.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="run on the workers of this Dask scheduler instead, e.g. tcp://host:8786",
    )
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="where the teacher and the distances to centroids compute",
    )


def setup_logging() -> None:
    """Log to standard error in ESPnet's format, without module noise."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s: %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
    )


def run_main(main: Callable[[], object]) -> None:
    """Run ``main`` and exit: 0 done, 1 failed, 2 wrong usage (argparse)."""
    setup_logging()
    try:
        main()
    except RecipeError as error:
        logging.error("%s", error)
        sys.exit(1)
    except KeyboardInterrupt:
        logging.error("interrupted")
        sys.exit(130)
