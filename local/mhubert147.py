"""Make data directories from mHuBERT-147's public manifests (stage 1)."""

import os

from espnet2_lamer.bin.common import run_main
from espnet2_lamer.bin.corpus import corpus_arguments, get_corpus_parser
from espnet2_lamer.data.corpora import MHUBERT147_AUDIO


def get_parser():
    """Return the argument parser."""
    from espnet2_lamer.data.corpora.mhubert147 import DATASETS

    parser = get_corpus_parser("mhubert147", __doc__, "manifest, or folder of *.tsv")
    parser.add_argument(
        "--audio_root",
        default=os.environ.get(MHUBERT147_AUDIO, ""),
        help="folder of the audio, instead of the manifests' first lines; default: "
        "MHUBERT147_AUDIO of db.sh",
    )
    parser.add_argument(
        "--datasets",
        default=" ".join(DATASETS),
        help="datasets to take; empty: all",
    )
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.data.corpora.mhubert147 import prepare

    prepare(
        **corpus_arguments("mhubert147", args),
        audio_root=args.audio_root,
        datasets=args.datasets.split(),
    )


if __name__ == "__main__":
    run_main(main)
