"""Section ``scale``: what many utterances cost before any of them is heard."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import memory
from benchmarks.options import option
from benchmarks.report import Table, megabytes, verdict
from espnet2_lamer.fileio.datadir import write_lines

TITLE = "many utterances"
DEVICES = ("cpu",)
UNITS, SECONDS, RATE = 500, 6, 16000
#: Bytes that the start of training may take in a process at ten million utterances.
LIMIT, MANY = 2e9, 10_000_000


@dataclass(frozen=True)
class Options:
    """Sizes."""

    utterances: tuple[int, ...] = option((1000, 10_000, 100_000), "utterances")
    files: int = option(10_000, "files that are there; each is of many utterances")
    only: str = option("1,2,audio,5,6,7", "stages, and the look at all audio")
    fresh: int = option(1, "1: a new process per measurement; 0: in this one")


QUICK = Options((50, 100), 10, fresh=0)


def name(number: int) -> str:
    """An utterance id as long as those of corpora, in the order of numbers."""
    return f"corpus-speaker{number // 100:06d}-clip{number:08d}"


def write_corpus(root: Path, count: int, files: int) -> None:
    """Write files with nothing in them, and what every stage starts from."""
    folder = root / "files"
    folder.mkdir(exist_ok=True)
    paths = [str(folder / f"{number}.wav") for number in range(min(count, files))]
    for path in paths:
        Path(path).write_bytes(b"no sound")
    there = len(list(paths))
    with open(root / "manifest.tsv", "w", encoding="utf-8") as handle:
        handle.write("utt_id\tpath\tlang\tsplit\tspeaker\n")
        for number in range(count):
            split = "dev" if number % 100 == 0 else "train"
            row = name(number), paths[number % there], "yue", split, f"s{number // 100}"
            handle.write("\t".join(row) + "\n")
    data = root / "dump" / "raw" / "ssl_train"
    tables = {
        "wav.scp": lambda n: paths[n % there],
        "utt2lang": lambda n: "yue" if n % 3 else "eng",
        "utt2num_samples": lambda n: str(SECONDS * RATE - 40 * (n % 1000)),
    }
    for table, value in tables.items():
        lines = ((name(number), value(number)) for number in range(count))
        write_lines(data / table, lines)


def prepare(root: Path) -> None:
    """Stage 1 of a manifest."""
    from espnet2_lamer.data.manifest import prepare_manifest

    prepare_manifest(root / "manifest.tsv", root / "data", ["yue"])


def select(root: Path) -> None:
    """Stage 2, as if each utterance had a file, and every one were right."""
    from espnet2_lamer.data import formatting, overlap, selection
    from espnet2_lamer.data.converting import Audio

    def seconds(wavs, *_):
        return dict.fromkeys(wavs, float(SECONDS))

    def audio(wavs, *_):
        rest = SECONDS * RATE, float(SECONDS), None, False, False, False
        return {utt: Audio(path, *rest) for utt, path in wavs.items()}

    def each(function, wavs, *_):
        return ((utt, float(SECONDS), "") for utt in wavs)

    for table in (root / "data").glob("*/wav.scp"):
        utts = [line.split(maxsplit=1)[0] for line in table.open(encoding="utf-8")]
        write_lines(table, ((utt, f"/nowhere/{utt}.wav") for utt in utts))
    with (
        mock.patch.object(overlap, "over_files", each),
        mock.patch.object(selection, "header_seconds", seconds),
        mock.patch.object(formatting, "prepare_audio", audio),
    ):
        chosen = selection.Selection(["yue"], [], 0)
        selection.prepare_ssl_data(root / "data", root / "selected", chosen)


def look(root: Path) -> None:
    """What every run asks of the audio of a table, when it was seen before."""
    from espnet2_lamer.fileio.prints import Prints, listed_files

    Prints(root / "seen.npy")(listed_files(root / "dump/raw/ssl_train/wav.scp"))


def first_look(root: Path) -> None:
    """Let :func:`look` know the files."""
    from espnet2_lamer.fileio.prints import Prints, listed_files

    known = Prints(root / "seen.npy")
    known(listed_files(root / "dump/raw/ssl_train/wav.scp"))
    known.save()


def label(root: Path) -> None:
    """Stage 5 with units that nobody computed."""
    from benchmarks.units_setup import write_codebook
    from espnet2_lamer.constants import num_frames
    from espnet2_lamer.fileio.datadir import read_table
    from espnet2_lamer.units import assign
    from espnet2_lamer.units.teacher import load_teacher

    data = root / "dump/raw/ssl_train"
    teacher = load_teacher("mfcc")
    codebook = write_codebook(root / "codebook.npz", teacher, UNITS)
    frames = {
        s: num_frames(int(s))
        for s in set(read_table(data / "utt2num_samples").values())
    }
    units = np.random.default_rng(0).integers(0, UNITS, max(frames.values())).tolist()
    rows = {n: " ".join(map(str, units[:n])) for n in frames.values()}

    def shard(teacher, book, stored, part, path):
        with open(path, "w", encoding="utf-8") as handle:
            for utt, *_ in part:
                number = int(utt.rpartition("clip")[2])
                n = num_frames(SECONDS * RATE - 40 * (number % 1000))
                handle.write(f"{utt} {rows[n]}\n")
        return {"utterances": len(part), "frames": 0, "audio": 1.0, "forward": 1.0}

    with mock.patch.object(assign, "_label_shard", shard):
        assign.assign_units(teacher, codebook, data / "wav.scp", data / "text.km")


def shapes(root: Path) -> None:
    """Stage 6."""
    from espnet2_lamer.recipe.pretraining import write_shapes

    write_shapes(root / "dump/raw/ssl_train", root / "stats" / "train")


def start(root: Path) -> None:
    """Stage 7 to the first batch: all checks of labels, the data set, the plan."""
    from espnet2.tasks.abs_task import IteratorOptions

    from espnet2_lamer.recipe.pretraining import _data_options
    from espnet2_lamer.tasks.hubert import LamerHubertTask
    from espnet2_lamer.train.health import measure_shares
    from espnet2_lamer.train.labels import check_labels

    data, stats = root / "dump/raw/ssl_train", root / "stats"
    (stats / "valid").mkdir(exist_ok=True)
    _data_options(data, data, stats, UNITS)
    tables = [
        (str(data / "wav.scp"), "speech", "sound"),
        (str(data / "text.km"), "text", "text_int"),
        (str(stats / "train" / "utt2langid"), "lang", "text_int"),
    ]
    options = LamerHubertTask.get_parser().parse_args(["--output_dir", str(root)])
    options.train_data_path_and_name_and_type = [
        [*tables[0]],
        [tables[1][0], "text", "text"],
        [*tables[2]],
    ]
    options.langs, options.num_classes = ["eng", "yue"], UNITS
    options.num_workers = 0
    fields = dict.fromkeys(IteratorOptions.__dataclass_fields__)
    fields |= {"shape_files": [str(stats / "train" / "speech_shape")], "train": True}
    fields |= {"data_path_and_name_and_type": tables, "batch_bins": 60 * RATE}
    fields |= {"max_cache_size": 0, "max_cache_fd": 0, "allow_multi_rates": False}
    factory = LamerHubertTask.build_task_iter_factory(
        options, SimpleNamespace(**fields), "train"
    )
    _, _, languages = check_labels("train", factory.lengths, options)
    measure_shares(factory, 1, languages)
    factory.dataset.dataset.loader_dict["text"][factory.plan(1)[0][0]]


STEPS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "1": ("stage 1, a manifest", prepare),
    "2": ("stage 2 without audio", select),
    "audio": ("look at all audio again", look),
    "5": ("stage 5 without teacher", label),
    "6": ("stage 6", shapes),
    "7": ("stage 7 to its first batch", start),
}


def measure(key: str, root: Path) -> dict[str, Any]:
    """Run a step; seconds, and the most memory of the process without its imports."""
    # Imports first.
    import espnet2_lamer.data.manifest
    import espnet2_lamer.data.selection
    import espnet2_lamer.recipe.pretraining  # noqa: F401

    if key == "audio":
        first_look(root)
    before = memory.resident()
    memory.reset_peak_resident()
    started = time.perf_counter()
    STEPS[key][1](root)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "before": before, "peak": memory.peak_resident()}


def run(options: Options, device: str) -> list[str | Table]:
    """Measure; returns text and a table."""
    header = ["step", "utterances", "seconds", "peak MB", "of these the data's MB"]
    table = Table("Seconds and memory of one process", [*header, "bytes an utterance"])
    found: dict[tuple[str, int], dict] = {}
    for count in options.utterances:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            write_corpus(root, count, options.files)
            for key in options.only.split(","):
                fresh = {"fresh": bool(options.fresh)}
                found[key, count] = memory.call(measure, key, root, **fresh)
    for key in options.only.split(","):
        for count in options.utterances:
            one = found[key, count]
            data = one["peak"] - one["before"]
            cells = [STEPS[key][0], f"{count}", f"{one['seconds']:.2f}"]
            cells += [megabytes(one["peak"]), megabytes(data), f"{data / count:.0f}"]
            table.rows.append(cells)
    text = (
        "Each step in a process of its own that has imported everything; "
        f"{options.files} files at most, so that many utterances share one, and none "
        "is decoded. Stage 7 runs every check of labels (twice, as the recipe and the "
        "training do), opens the data set and plans an epoch; model and optimizer come "
        "on top."
    )
    fewer, last = (0, *sorted(options.utterances))[-2:]
    if fewer and ("7", last) in found:
        # What every number takes is in both.
        own = [found["7", n]["peak"] - found["7", n]["before"] for n in (fewer, last)]
        each = (own[1] - own[0]) / (last - fewer)
        whole = found["7", last]["peak"] + each * (MANY - last)
        text += (
            f" By the line through {fewer} and {last} utterances, the start of "
            f"training with ten million takes {megabytes(whole)} MB, {each:.0f} bytes "
            "each "
            f"({verdict(whole, '<=', LIMIT)})."
        )
    return [text, table]
