"""Section ``labels``: labelling against the forward pass of the teacher alone."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import memory
from benchmarks.harness import Case, interleave, synchronizer
from benchmarks.options import option
from benchmarks.report import Table, megabytes, verdict
from benchmarks.stock_setup import RATE, SIZES
from benchmarks.units_setup import write_codebook, write_speech, write_teacher
from espnet2_lamer.units.assign import assign_units
from espnet2_lamer.units.teacher import Teacher, load_teacher

TITLE = "pseudo-labels in one pass"
DEVICES = ("cpu", "cuda")
LABELS = "labelling, from files to `text.km`"


@dataclass(frozen=True)
class Options:
    """Sizes; the defaults are mHuBERT-147's layer 9 and its number of units."""

    size: str = option("base", f"teacher, of {', '.join(SIZES)}")
    layer: int = option(9, "its layer")
    units: int = option(1000, "units K")
    utterances: int = option(12, "utterances")
    shortest: float = option(2.0, "seconds of the shortest utterance")
    longest: float = option(12.0, "seconds of the longest utterance")
    rounds: int = option(5, "timed rounds")


QUICK = Options("tiny", 2, 5, 4, 0.3, 1.0, 1)


def forward(teacher: Teacher, samples: list[np.ndarray]) -> None:
    """Run the teacher over utterances in memory."""
    for signal in samples:
        teacher.forward_batch(signal[None])


def run(options: Options, device: str) -> list[str | Table]:
    """Measure; returns text and a table."""
    blocks = SIZES[options.size]["encoder_num_layers"]
    alone = f"teacher's forward alone, {options.layer} of {blocks} blocks"
    whole = f"teacher's forward alone, all {blocks} blocks"
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        source = str(write_teacher(root, options.size))
        complete = load_teacher(source, blocks, device)
        teacher = load_teacher(source, options.layer, device)
        scp, samples = write_speech(
            root, options.utterances, options.shortest, options.longest
        )
        codebook = write_codebook(root / "codebook.npz", teacher, options.units)
        output, bytes_written = root / "text.km", []

        def label() -> None:
            before = memory.written()
            assign_units(teacher, codebook, scp, output)
            bytes_written.append(memory.written() - before)

        def forget() -> None:
            # Complete labels would not be made again.
            for path in root.glob("text.km*"):
                path.unlink()

        cases = {
            alone: Case(lambda: forward(teacher, samples)),
            LABELS: Case(label, forget),
            whole: Case(lambda: forward(complete, samples)),
        }
        timings = interleave(
            cases, options.rounds, 1, synchronizer(device), f"labels on {device}"
        )
        text = output.stat().st_size
        frames = sum(len(teacher.forward(signal)) for signal in samples)
    speech = sum(map(len, samples)) / RATE
    table = Table(
        f"HuBERT `{options.size}`, K = {options.units}, one process",
        ["form", "seconds", "speech s per s", "throughput / forward alone", "target"],
    )
    for form in cases:
        ratio = timings.ratio(alone, form)
        seconds = timings.median(form)
        target = verdict(ratio.median, ">=", 0.9) if form == LABELS else "-"
        table.rows.append(
            [form, f"{seconds:.3g}", f"{speech / seconds:.1f}", str(ratio), target]
        )
    explanation = (
        f"{options.utterances} utterances of noise, {speech:.0f} s, timed rounds: "
        f"{options.rounds}. Labelling reads FLAC files, runs the teacher, finds the "
        "nearest centroids and writes shards with markers and hashes, `text.km` and "
        "its sidecar. It wrote at most "
        f"{max(bytes_written)} bytes in all, log lines included, for {text} bytes of "
        "labels: 0 bytes of features, which would be "
        f"{megabytes(frames * teacher.dim * 4)} MB."
    )
    return [explanation, table]
