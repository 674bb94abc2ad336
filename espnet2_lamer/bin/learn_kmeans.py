"""Learn a k-means codebook from dumped teacher features."""

import argparse

from espnet2_lamer.bin.common import (
    add_parallel_arguments,
    get_argument_parser,
    run_main,
)


def get_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = get_argument_parser("Learn a codebook with mini-batch k-means.")
    parser.add_argument("--features", required=True, help="output of dump_features")
    parser.add_argument("--n_clusters", type=int, default=1000, help="units K")
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness")
    parser.add_argument("--n_init", type=int, default=20, help="k-means++ starts")
    parser.add_argument(
        "--output",
        required=True,
        help="codebook.npz; its quality goes beside it as .quality.json and .md",
    )
    add_parallel_arguments(parser)
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.parallel import workers
    from espnet2_lamer.units.kmeans import KmeansConfig, learn_kmeans

    config = KmeansConfig(args.n_clusters, seed=args.seed, n_init=args.n_init)
    with workers(args.dask):
        learn_kmeans(args.features, args.output, config, args.nj, args.device)


if __name__ == "__main__":
    run_main(main)
