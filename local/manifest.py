"""Make data directories from a TSV manifest or a folder per language (stage 1)."""

from espnet2_lamer.bin.common import get_argument_parser, run_main


def get_parser():
    """Return the argument parser."""
    parser = get_argument_parser(__doc__)
    parser.add_argument(
        "--manifest",
        required=True,
        help="TSV file with the columns utt_id, path, lang (and split, text, speaker, "
        "romanisation, source), or a folder ROOT with ROOT/<lang>/**/*.wav",
    )
    parser.add_argument(
        "--langs", default="", help='ISO 639-3 codes, e.g. "eng cmn yue"; empty: all'
    )
    parser.add_argument(
        "--exclude_sources", default="", help="values of the column source to leave out"
    )
    parser.add_argument("--output", default="data", help="where the data sets go")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the split of rows that name none"
    )
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.data.manifest import prepare_manifest

    prepare_manifest(
        args.manifest,
        args.output,
        args.langs.split(),
        args.exclude_sources.split(),
        args.seed,
    )


if __name__ == "__main__":
    run_main(main)
