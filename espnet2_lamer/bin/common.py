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
