"""Make the embedded corpus: synthetic speech in eng, cmn and yue (stage 1)."""

from espnet2_lamer.bin.common import get_argument_parser, run_main


def get_parser():
    """Return the argument parser."""
    parser = get_argument_parser(__doc__)
    parser.add_argument("--output", default="data", help="where the data sets go")
    parser.add_argument(
        "--stage0",
        action="store_true",
        help="make the corpora that stage 0 trains the base and the teacher on",
    )
    parser.add_argument("--nj", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.data.mini import build_mini, build_pretraining_corpora

    build = build_pretraining_corpora if args.stage0 else build_mini
    build(args.output, nj=args.nj, seed=args.seed)


if __name__ == "__main__":
    run_main(main)
