"""Label speech with the units of a codebook, in one pass over the audio."""

from espnet2_lamer.bin.common import Parser, run_main
from espnet2_lamer.errors import RecipeError


def get_parser() -> Parser:
    """Return the argument parser."""
    parser = Parser("Write `utt u1 u2 ...` and its sidecar.")
    add = parser.add_argument
    parser.share("teacher")
    add("--layer", type=int, help="1..L; the codebook's when not given")
    add("--codebook", required=True, help="output of learn_kmeans")
    parser.share("wav_scp")
    add("--output", required=True, help="text.km")
    add("--n_clusters", type=int, help="units K that are expected")
    add("--token_list", help="tokens.txt to write: 0..K-1 and symbols")
    add(
        "--features",
        help="output of dump_features: what it holds of the same teacher, device and "
        "audio is read from there, not computed",
    )
    parser.share("nj", "dask", "device", "gpus", "trust_s3prl_files")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.fileio.locks import working_on
    from espnet2_lamer.parallel import workers
    from espnet2_lamer.units.assign import assign_units
    from espnet2_lamer.units.codebook import load_codebook
    from espnet2_lamer.units.labels import write_token_list
    from espnet2_lamer.units.teacher import load_teacher

    codebook = load_codebook(args.codebook)
    layer = codebook.metadata["layer"] if args.layer is None else args.layer
    units = len(codebook.centroids)
    if args.n_clusters not in (None, units):
        raise RecipeError(
            f"{args.codebook}: {units} units, --n_clusters is {args.n_clusters}; give "
            f"--n_clusters {units}, or make the codebook anew"
        )
    with working_on(args.output), workers(args.dask):
        place = args.device, args.trust_s3prl_files, args.gpus
        teacher = load_teacher(args.teacher, layer, *place)
        files = args.codebook, args.wav_scp, args.output
        assign_units(teacher, *files, nj=args.nj, features=args.features)
    if args.token_list:
        write_token_list(args.token_list, units)


if __name__ == "__main__":
    run_main(main)
