"""Recognise recordings of any length: text, CTM, JSON and subtitles with times."""

import argparse
import logging
import time
from pathlib import Path

from espnet2_lamer.bin.common import Parser, run_main
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe.declaration import READERS


def get_parser() -> Parser:
    """Return the argument parser."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("audio", nargs="+", metavar="AUDIO", help="files; their stems name the output")
    add(
        "--model",
        required=True,
        type=Path,
        help="a recogniser: its package (.zip) or its experiment",
    )
    add("--output", required=True, type=Path, help="folder for NAME.txt, .ctm ...")
    add(
        "--segment",
        choices=["vad", "energy", "none"],
        default="vad",
        help="vad: cut at pauses that a small network finds, and leave out what is no "
        "speech; energy: by loudness alone; none: a file is one utterance",
    )
    add("--min_duration", type=float, default=2.0, help="shortest piece in seconds")
    add("--max_duration", type=float, default=30.0, help="longest piece in seconds")
    flag = {"type": READERS[bool], "default": True}
    add("--use_lm", **flag, help="false: without the model's language models")
    for name in ("beam_size", "lm_weight", "ngram_weight", "penalty", "ctc_weight"):
        kind = int if name == "beam_size" else float
        add(f"--{name}", type=kind, help="instead of the model's own, with its LM")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="where to compute")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.evaluation.lm_search import DECODING
    from espnet2_lamer.evaluation.recogniser import Recogniser
    from espnet2_lamer.evaluation.transcripts import write_transcript
    from espnet2_lamer.export.features import audio_ids

    files = audio_ids(args.audio)
    changes = {key: getattr(args, key) for key in DECODING}
    changes = {key: value for key, value in changes.items() if value is not None}
    recogniser = Recogniser(args.model, args.device, args.use_lm, changes)
    for name, path in files.items():
        started = time.perf_counter()
        seconds = _length(path)
        pieces = _pieces(path, seconds, args)
        found = [*recogniser.transcribe(path, pieces)]
        paths = write_transcript(name, found, args.output)
        took = time.perf_counter() - started
        logging.info(
            "%s: %.1f s, of it %.1f s in %d pieces recognised, %d words, in %.1f s "
            "(%.2f of real time): %s",
            path,
            seconds,
            sum(piece.end - piece.start for piece in found),
            len(found),
            sum(len(piece.words) for piece in found),
            took,
            took / max(seconds, 1e-9),
            paths[0].with_suffix(".{txt,ctm,json,srt}"),
        )


def _length(path: str) -> float:
    """Return a file's seconds; raise ``RecipeError`` where it cannot be used."""
    from espnet2_lamer.data.audio import file_seconds
    from espnet2_lamer.data.audio_decoding import Unusable

    try:
        return file_seconds(Path(path).stem, path)
    except Unusable as error:
        raise RecipeError(f"{path}: {error}") from error


def _pieces(
    path: str, seconds: float, args: argparse.Namespace
) -> list[tuple[float, float]]:
    if args.segment == "none":
        if seconds > args.max_duration:
            logging.warning(
                "%s: %.0f s as one utterance: models learn from 30 s at most; "
                "--segment vad cuts it at pauses",
                path,
                seconds,
            )
        return [(0.0, seconds)]
    from espnet2_lamer.data.segmentation import find_segments

    limits = args.min_duration, args.max_duration
    found = find_segments(path, args.segment, *limits)
    if not found:
        logging.warning("%s: no speech was found in it", path)
    return [(segment.start, segment.end) for segment in found]


if __name__ == "__main__":
    run_main(main)
