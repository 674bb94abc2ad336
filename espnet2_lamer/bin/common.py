"""What every command line shares: logging, exit codes, parser style."""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.system import system_message
from espnet2_lamer.fileio.trust import OPTION, protect
from espnet2_lamer.recipe.options import CommonOptions


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


def flag(text: str) -> bool:
    """Read ``true`` or ``false``."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")
    return text == "true"


#: How the options of ``CommonOptions`` are read from the command line.
COMMON_TYPES: dict[str, Callable[[str], object]] = {
    "stage": int,
    "stop_stage": int,
    "skip_stages": numbers,
    "ngpu": int,
    "nj": int,
    "seed": int,
    "datadir": Path,
    "dumpdir": Path,
    "expdir": Path,
    "preset": str,
    "corpus": str,
    "manifest": str,
    "exclude_sources": words,
    "max_missing": float,
    "min_duration": float,
    "max_duration": float,
    "max_bad_audio": float,
    "hf_repo": str,
    "dry_run": flag,
}


def check_stages(options: CommonOptions, last_stage: int) -> None:
    """Raise ``RecipeError`` unless the wished stages exist and are in order."""
    for name in ("stage", "stop_stage"):
        value = getattr(options, name)
        if not 0 <= value <= last_stage:
            raise RecipeError(f"--{name}: found {value}, expected 0 to {last_stage}")
    if options.stop_stage < options.stage:
        raise RecipeError(
            f"--stop_stage: found {options.stop_stage}, expected --stage "
            f"({options.stage}) or later; no stage would run"
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


class _OwnOrError(logging.Filter):
    """Lets errors through, and what this package's own modules say."""

    def filter(self, record: logging.LogRecord) -> bool:
        ours = f"{os.sep}espnet2_lamer{os.sep}" in record.pathname
        return ours or record.levelno >= logging.ERROR


def quiet_terminal() -> None:
    """Keep ESPnet's log lines off the terminal; the stage's log file has them all."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_OwnOrError())
    # ESPnet's own use of torch; nothing a user could change.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"espnet2\.")
