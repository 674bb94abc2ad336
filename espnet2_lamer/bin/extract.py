"""Write features of a trained model: one layer of every utterance, as npz or ark."""

from espnet2_lamer.bin.common import Parser, run_main
from espnet2_lamer.recipe.declaration import READERS


def get_parser() -> Parser:
    """Return the argument parser."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("audio", nargs="*", metavar="AUDIO", help="files; their stems become the ids")
    add("--wav_scp", help="instead of files: `utt path` lines")
    add(
        "--model",
        required=True,
        help="experiment or one of its .pth files, packed zip, Hugging Face HuBERT, "
        "s3prl:NAME[:FILE]: what espnet2_lamer.load_model takes",
    )
    add("--base", help="where the frozen base is now, if the model needs one")
    parser.share("trust_s3prl_files")
    layer = "0 (the transformer's input) to L, or all (npz only)"
    add("--layer", type=READERS[int | str], required=True, help=layer)
    add("--output", required=True, help="file to write; an ark's .scp goes beside it")
    add("--format", choices=["npz", "ark"], default="npz", help="of the file")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="where to compute")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    parser = get_parser()
    args = parser.parse_args(cmd)
    if bool(args.audio) == bool(args.wav_scp):
        parser.error("give either audio files or --wav_scp")
    from espnet2_lamer.data.speech import read_wav_scp
    from espnet2_lamer.export.features import audio_ids, write_features
    from espnet2_lamer.upstream import load_model

    scp = args.wav_scp
    utterances = read_wav_scp(scp) if scp else audio_ids(args.audio)
    model = load_model(args.model, args.base, args.trust_s3prl_files)
    write_features(model, args.layer, utterances, args.output, args.format, args.device)


if __name__ == "__main__":
    run_main(main)
