"""Make data directories from CommonVoice 11.0 (stage 1)."""

from espnet2_lamer.bin.common import run_main
from espnet2_lamer.bin.corpus import corpus_arguments, get_corpus_parser


def get_parser():
    """Return the argument parser."""
    return get_corpus_parser("commonvoice", __doc__, "folder cv-corpus-11.0-2022-09-21")


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.data.corpora.commonvoice import prepare

    prepare(**corpus_arguments("commonvoice", args))


if __name__ == "__main__":
    run_main(main)
