"""Make evaluation sets from FLEURS (stage 1)."""

from espnet2_lamer.bin.common import run_main
from espnet2_lamer.bin.corpus import corpus_arguments, get_corpus_parser


def get_parser():
    """Return the argument parser."""
    return get_corpus_parser(
        "fleurs", __doc__, "folder with en_us, cmn_hans_cn, yue_hant_hk"
    )


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.data.corpora.fleurs import prepare

    prepare(**corpus_arguments("fleurs", args))


if __name__ == "__main__":
    run_main(main)
