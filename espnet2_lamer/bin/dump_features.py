"""Write teacher features of (a sample of) the speech, for k-means."""

import argparse

from espnet2_lamer.bin.common import (
    add_parallel_arguments,
    add_trust_argument,
    get_argument_parser,
    run_main,
)


def get_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = get_argument_parser("Write teacher features as float32 shards.")
    parser.add_argument(
        "--teacher",
        required=True,
        help="mfcc, a Hugging Face HuBERT directory or id, s3prl:NAME[:FILE], or an "
        "experiment directory",
    )
    parser.add_argument("--layer", type=int, default=0, help="1..L; 0 for mfcc")
    parser.add_argument("--wav_scp", required=True, help="`utt path` lines, 16 kHz")
    parser.add_argument("--output", required=True, help="directory of the shards")
    parser.add_argument("--utt2lang", help="`utt lang` lines")
    parser.add_argument(
        "--hours_per_lang", type=float, help="sample so much of each language"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    add_parallel_arguments(parser)
    add_trust_argument(parser)
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.parallel import workers
    from espnet2_lamer.units.features import dump_features
    from espnet2_lamer.units.teacher import load_teacher

    with workers(args.dask):
        dump_features(
            load_teacher(args.teacher, args.layer, args.device, args.trust_s3prl_files),
            args.wav_scp,
            args.output,
            utt2lang=args.utt2lang,
            hours_per_lang=args.hours_per_lang,
            seed=args.seed,
            nj=args.nj,
        )


if __name__ == "__main__":
    run_main(main)
