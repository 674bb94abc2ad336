"""A picture of one recording and where it is cut.

python -m benchmarks.segment_picture RECORDING docs/segmentation.png
"""

import argparse
import io
from pathlib import Path

import numpy as np

from espnet2_lamer.bin.common import run_main
from espnet2_lamer.data.segmentation import cut_at_pauses, hear
from espnet2_lamer.data.voice_activity import FRAME_SECONDS
from espnet2_lamer.fileio.atomic import atomic_path


def main(cmd: list[str] | None = None) -> None:
    """Draw level, probability of speech and segments of a part of a recording."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.segment_picture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recording", help="audio file")
    parser.add_argument("output", type=Path, help="PNG")
    parser.add_argument("--start", type=float, default=0.0, help="seconds")
    parser.add_argument("--end", type=float, default=100.0, help="seconds")
    args = parser.parse_args(cmd)
    draw(args.recording, args.output, args.start, args.end)


def draw(recording: str, output: Path, start: float, end: float) -> None:
    """Write the picture, from ``start`` to ``end`` in seconds."""
    from matplotlib.figure import Figure
    from PIL import Image

    heard = hear(recording)
    cuts = cut_at_pauses(heard, 2.0, 30.0)
    time = (np.arange(len(heard.level)) + 0.5) * FRAME_SECONDS
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    above.plot(time, heard.level, color="0.35", linewidth=0.6)
    above.set_ylabel("level (dB)")
    shown = heard.level[(time >= start) & (time <= end)]
    above.set_ylim(max(-90, shown.min() - 3), shown.max() + 6)
    below.plot(time, heard.speech, color="tab:orange", linewidth=0.8)
    below.set_ylabel("speech")
    below.set_yticks((0, 1))
    below.set_xlabel("seconds")
    for segment in cuts.segments:
        for axes in (above, below):
            axes.axvspan(
                segment.start, segment.end, color="tab:blue", alpha=0.18, linewidth=0
            )
    below.set_xlim(start, min(end, heard.seconds))
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=90)
    with atomic_path(output) as temporary:
        # A third of the size.
        Image.open(drawn).convert("RGB").quantize(32).save(temporary, "PNG")


if __name__ == "__main__":
    run_main(main)
