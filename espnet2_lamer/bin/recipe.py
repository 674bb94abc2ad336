"""Run stages of ssl1; ``egs2/lamer_ssl/ssl1/run.sh`` calls this."""

import argparse

from espnet2_lamer.bin.common import run_main
from espnet2_lamer.recipe import declaration
from espnet2_lamer.recipe.command import run_recipe
from espnet2_lamer.recipe.stages import ssl1


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of run.sh's options."""
    return declaration.get_parser(ssl1.options)


def main(cmd: list[str] | None = None) -> None:
    """Read options, check them, run the stages."""
    run_recipe(ssl1, cmd)


if __name__ == "__main__":
    run_main(main)
