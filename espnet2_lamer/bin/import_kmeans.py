"""Import a k-means of fairseq or ESPnet (a joblib file) as a codebook."""

import argparse

from espnet2_lamer.bin.common import (
    add_trust_argument,
    get_argument_parser,
    run_main,
)


def get_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = get_argument_parser(
        "Turn a joblib file of a scikit-learn KMeans or MiniBatchKMeans, as fairseq "
        "and ESPnet write it, into a codebook. This unpickles the file."
    )
    parser.add_argument("--joblib", required=True, help="the k-means file")
    parser.add_argument(
        "--teacher",
        required=True,
        help="what it was learned on: a Hugging Face HuBERT directory or id, "
        "s3prl:NAME[:FILE], or an experiment directory",
    )
    parser.add_argument("--layer", type=int, required=True, help="of the teacher, 1..L")
    parser.add_argument("--output", required=True, help="codebook.npz")
    parser.add_argument(
        "--trust_pickle",
        action="store_true",
        help="unpickle the file, which runs any code in it: only where you trust its "
        "origin",
    )
    add_trust_argument(parser)
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.units.codebook import import_kmeans
    from espnet2_lamer.units.teacher import load_teacher

    import_kmeans(
        args.joblib,
        load_teacher(
            args.teacher, args.layer, trust_s3prl_files=args.trust_s3prl_files
        ),
        args.output,
        args.trust_pickle,
    )


if __name__ == "__main__":
    run_main(main)
