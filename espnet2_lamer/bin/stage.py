"""Do one stage's work by hand: ``stage ssl1 analysis --preset mini``."""

import sys

from espnet2_lamer.bin.common import Parser, run_main


def get_parser() -> Parser:
    """Return a parser that explains; options are those of the recipe's run.sh."""
    parser = Parser(
        "Do the work of one stage, whatever was done before and without a record; run "
        "in the recipe's folder. ./run.sh --print_commands true prints such commands."
    )
    parser.add_argument("recipe", choices=["ssl1", "asr1"], help="which recipe")
    parser.add_argument("stage", help="name of the stage")
    parser.add_argument("options", nargs="...", help="as of the recipe's run.sh")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    cmd = sys.argv[1:] if cmd is None else cmd
    if cmd[:1] in (["-h"], ["--help"]):
        get_parser().parse_args(cmd)
    from espnet2_lamer.recipe.command import run_stage
    from espnet2_lamer.recipe.stages import ssl1
    from espnet2_lamer.recipe.whisper.stages import asr1

    run_stage((ssl1, asr1), cmd)


if __name__ == "__main__":
    run_main(main)
