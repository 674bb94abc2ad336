"""Import a k-means of fairseq or ESPnet (a joblib file) as a codebook."""

from espnet2_lamer.bin.common import Parser, run_main


def get_parser() -> Parser:
    """Return the argument parser."""
    parser = Parser(
        "Turn a joblib file of a scikit-learn KMeans or MiniBatchKMeans, as fairseq "
        "and ESPnet write it, into a codebook. This unpickles the file."
    )
    add = parser.add_argument
    add("--joblib", required=True, help="the k-means file")
    add(
        "--teacher",
        required=True,
        help="what it was learned on: a Hugging Face HuBERT directory or id, "
        "s3prl:NAME[:FILE], or an experiment directory",
    )
    add("--layer", type=int, required=True, help="of the teacher, 1..L")
    add("--output", required=True, help="codebook.npz")
    add(
        "--trust_pickle",
        action="store_true",
        help="unpickle the file, which runs any code in it: only where you trust its "
        "origin",
    )
    parser.share("trust_s3prl_files")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.fileio.locks import working_on
    from espnet2_lamer.units.codebook import import_kmeans
    from espnet2_lamer.units.teacher import load_teacher

    trust = args.trust_s3prl_files
    teacher = load_teacher(args.teacher, args.layer, trust_s3prl_files=trust)
    with working_on(args.output):
        import_kmeans(args.joblib, teacher, args.output, args.trust_pickle)


if __name__ == "__main__":
    run_main(main)
