"""Make a data directory from AISHELL-3 (stage 1)."""

from espnet2_lamer.bin.common import run_main
from espnet2_lamer.bin.corpus import corpus_arguments, get_corpus_parser


def get_parser():
    """Return the argument parser."""
    return get_corpus_parser("aishell3", __doc__, "folder with train/ and test/")


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.data.corpora.aishell3 import prepare

    prepare(**corpus_arguments("aishell3", args))


if __name__ == "__main__":
    run_main(main)
