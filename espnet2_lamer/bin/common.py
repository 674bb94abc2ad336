"""What every command line shares: logging, exit codes, parser style."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

from espnet2_lamer.fileio.system import system_message
from espnet2_lamer.fileio.trust import OPTION, protect
from espnet2_lamer.recipe.declaration import flag


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


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust_s3prl_files``."""
    parser.add_argument(
        f"--{OPTION}",
        type=flag,
        default=False,
        help="true: let S3PRL read the FILE of s3prl:NAME:FILE, which runs code that "
        "it may hold",
    )


def take_trust(cmd: Sequence[str] | None) -> tuple[bool, list[str]]:
    """Take ``--trust_s3prl_files`` out of the arguments of one of ESPnet's commands.

    ESPnet's own parsers would also read it from the YAML of ``--config``, which may be
    another's.

    Returns:
        Its value, and the other arguments.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_trust_argument(parser)
    known, rest = parser.parse_known_args(cmd)
    return getattr(known, OPTION), rest


def words(text: str) -> list[str]:
    """Read an option's words."""
    return text.split()


def numbers(text: str) -> list[int]:
    """Read an option's whole numbers."""
    return [int(word) for word in text.split()]


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
    # Everything ESPnet or torch loads from here on is data, never code.
    protect()
    try:
        main()
    except KeyboardInterrupt:
        logging.error("interrupted")
        sys.exit(130)
    except Exception as error:
        message = system_message(error)
        if message is None:
            raise
        logging.error("%s", message)
        sys.exit(1)
