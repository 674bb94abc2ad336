"""Label speech with the units of a codebook, in one pass over the audio."""

import argparse

from espnet2_lamer.bin.common import (
    add_parallel_arguments,
    add_trust_argument,
    get_argument_parser,
    run_main,
)
from espnet2_lamer.errors import RecipeError


def get_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = get_argument_parser("Write `utt u1 u2 ...` and its sidecar.")
    parser.add_argument(
        "--teacher",
        required=True,
        help="mfcc, a Hugging Face HuBERT directory or id, s3prl:NAME[:FILE], or an "
        "experiment directory",
    )
    parser.add_argument("--layer", type=int, help="1..L; the codebook's when not given")
    parser.add_argument("--codebook", required=True, help="output of learn_kmeans")
    parser.add_argument("--wav_scp", required=True, help="`utt path` lines, 16 kHz")
    parser.add_argument("--output", required=True, help="text.km")
    parser.add_argument("--n_clusters", type=int, help="units K that are expected")
    parser.add_argument("--token_list", help="tokens.txt to write: 0..K-1 and symbols")
    add_parallel_arguments(parser)
    add_trust_argument(parser)
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.parallel import workers
    from espnet2_lamer.units.codebook import load_codebook
    from espnet2_lamer.units.labels import assign_units, write_token_list
    from espnet2_lamer.units.teacher import load_teacher

    codebook = load_codebook(args.codebook)
    layer = codebook.metadata["layer"] if args.layer is None else args.layer
    units = len(codebook.centroids)
    if args.n_clusters not in (None, units):
        raise RecipeError(
            f"{args.codebook}: {units} units, --n_clusters is {args.n_clusters}; give "
            f"--n_clusters {units}, or make the codebook anew"
        )
    with workers(args.dask):
        assign_units(
            load_teacher(args.teacher, layer, args.device, args.trust_s3prl_files),
            args.codebook,
            args.wav_scp,
            args.output,
            nj=args.nj,
        )
    if args.token_list:
        write_token_list(args.token_list, units)


if __name__ == "__main__":
    run_main(main)
