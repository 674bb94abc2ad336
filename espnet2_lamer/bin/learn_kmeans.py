"""Learn a k-means codebook from dumped teacher features."""

from espnet2_lamer.bin.common import Parser, run_main


def get_parser() -> Parser:
    """Return the argument parser."""
    parser = Parser("Learn a codebook with mini-batch k-means.")
    add = parser.add_argument
    add("--features", required=True, help="output of dump_features")
    add("--n_clusters", type=int, default=1000, help="units K")
    add("--seed", type=int, default=0, help="seed of all randomness")
    add("--n_init", type=int, default=1, help="k-means++ starts; the best is kept")
    add("--max_passes", type=int, default=100, help="most passes over the features")
    add(
        "--min_gain",
        type=float,
        default=0.001,
        help="share by which a round (a pass, or 5000 frames per unit of a large "
        "store) must lower the inertia of a validation block to go on",
    )
    add(
        "--output",
        required=True,
        help="codebook.npz; its quality goes beside it as .quality.json and .md",
    )
    parser.share("nj", "dask", "device")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.fileio.locks import working_on
    from espnet2_lamer.parallel import workers
    from espnet2_lamer.units.kmeans import KmeansConfig, learn_kmeans

    names = ("n_clusters", "seed", "n_init", "max_passes", "min_gain")
    config = KmeansConfig(**{name: getattr(args, name) for name in names})
    with working_on(args.output), workers(args.dask):
        learn_kmeans(args.features, args.output, config, args.nj, args.device)


if __name__ == "__main__":
    run_main(main)
