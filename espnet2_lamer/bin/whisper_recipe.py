"""Run stages of asr1; ``egs2/lamer_ssl/asr1/run.sh`` calls this."""

import argparse

from espnet2_lamer.bin.common import run_main
from espnet2_lamer.recipe import declaration
from espnet2_lamer.recipe.command import run_recipe
from espnet2_lamer.recipe.whisper.stages import asr1


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of run.sh's options."""
    return declaration.get_parser(asr1.options)


def main(cmd: list[str] | None = None) -> None:
    """Read options, check them, run the stages."""
    run_recipe(asr1, cmd)


if __name__ == "__main__":
    run_main(main)
