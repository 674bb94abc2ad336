"""What every command line shares: logging, exit codes, parser and common options."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from espnet2_lamer.fileio.system import system_message
from espnet2_lamer.fileio.trust import OPTION, protect
from espnet2_lamer.recipe.declaration import READERS

#: Read an option's words, and its whole numbers.
words, numbers = READERS[list[str]], READERS[list[int]]

#: Options of several commands.
SHARED: dict[str, dict[str, Any]] = {
    "teacher": {
        "required": True,
        "help": "mfcc, a Hugging Face HuBERT directory or id, s3prl:NAME[:FILE], or "
        "an experiment directory",
    },
    "wav_scp": {"required": True, "help": "`utt path` lines, 16 kHz"},
    "nj": {"type": int, "default": 1, "help": "processes of this machine"},
    "dask": {
        "metavar": "ADDRESS",
        "help": "run on the workers of this Dask scheduler instead, e.g. "
        "tcp://host:8786",
    },
    "device": {
        "choices": ["cpu", "cuda"],
        "default": "cpu",
        "help": "where the teacher and the distances to centroids compute",
    },
    "gpus": {
        "type": int,
        "default": 1,
        "help": "with --device cuda: GPUs of this machine that --nj processes share",
    },
    OPTION: {
        "type": READERS[bool],
        "default": False,
        "help": "true: let S3PRL read the FILE of s3prl:NAME:FILE, which runs code "
        "that it may hold",
    },
}


class Parser(argparse.ArgumentParser):
    """A parser whose ``--help`` shows defaults."""

    def __init__(self, description: str | None = None, **settings: Any) -> None:
        form = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}
        super().__init__(description=description, **form | settings)

    def share(self, *names: str) -> None:
        """Add options of :data:`SHARED`."""
        for name in names:
            self.add_argument(f"--{name}", **SHARED[name])


def take_trust(cmd: Sequence[str] | None) -> tuple[bool, list[str]]:
    """Take ``--trust_s3prl_files`` out of the arguments of one of ESPnet's commands.

    ESPnet's own parsers would also read it from the YAML of ``--config``, which may be
    another's.

    Returns:
        Its value, and the other arguments.
    """
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.share(OPTION)
    known, rest = parser.parse_known_args(cmd)
    return getattr(known, OPTION), rest


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
