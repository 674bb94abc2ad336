"""Make the embedded corpus: synthetic speech in eng, cmn, yue, spa (stage 1)."""

from espnet2_lamer.bin.common import get_argument_parser, run_main, words


def get_parser():
    """Return the argument parser."""
    from espnet2_lamer.data.mini import LANGS

    parser = get_argument_parser(__doc__)
    parser.add_argument("--output", default="data", help="where the data sets go")
    parser.add_argument(
        "--stage0",
        action="store_true",
        help="make the corpora that stage 0 trains the base and the teacher on",
    )
    parser.add_argument(
        "--langs", type=words, default=LANGS, help="some of eng cmn yue spa"
    )
    parser.add_argument("--nj", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.data.mini import build_mini, build_pretraining_corpora

    common = {"nj": args.nj, "seed": args.seed}
    if args.stage0:
        build_pretraining_corpora(args.output, **common)
    else:
        build_mini(args.output, **common, langs=args.langs)


if __name__ == "__main__":
    run_main(main)
