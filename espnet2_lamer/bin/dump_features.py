"""Write teacher features of (a sample of) the speech, for k-means."""

from espnet2_lamer.bin.common import Parser, run_main


def get_parser() -> Parser:
    """Return the argument parser."""
    parser = Parser("Write teacher features as float32 shards.")
    add = parser.add_argument
    parser.share("teacher")
    add("--layer", type=int, default=0, help="1..L; 0 for mfcc")
    parser.share("wav_scp")
    add("--output", required=True, help="directory of the shards")
    add("--utt2lang", help="`utt lang` lines")
    add("--hours_per_lang", type=float, help="sample so much of each language")
    add("--seed", type=int, default=0, help="seed of the sample")
    parser.share("nj", "dask", "device", "gpus", "trust_s3prl_files")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.fileio.locks import working_on
    from espnet2_lamer.parallel import workers
    from espnet2_lamer.units.features import dump_features
    from espnet2_lamer.units.teacher import load_teacher

    with working_on(args.output), workers(args.dask):
        place = args.device, args.trust_s3prl_files, args.gpus
        dump_features(
            load_teacher(args.teacher, args.layer, *place),
            args.wav_scp,
            args.output,
            utt2lang=args.utt2lang,
            hours_per_lang=args.hours_per_lang,
            seed=args.seed,
            nj=args.nj,
        )


if __name__ == "__main__":
    run_main(main)
