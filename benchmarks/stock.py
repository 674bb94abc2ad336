"""Section ``stock``: ESPnet's own HuBERT training against ours, end to end."""

import importlib
import io
import re
import statistics
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

from benchmarks import memory
from benchmarks.harness import Timings
from benchmarks.report import Table, megabytes
from benchmarks.stock_setup import (
    OURS,
    RATE,
    STOCK,
    Corpus,
    Options,
    config,
    trained_audio,
    write_corpus,
)

TITLE = "pretraining through ESPnet, stock encoder against ours"
DEVICES = ("cpu",)
QUICK = Options(
    sizes=("tiny",),
    utterances=5,
    shortest=0.3,
    longest=1.0,
    bins=2.0,
    units=5,
    rounds=1,
    fresh=0,
)


def train(
    module: str, command: list[str], log: Path, threads: int, measure_resident: bool
) -> int | None:
    """Run ESPnet's training in this process, its messages into ``log``.

    Returns:
        Peak resident size in bytes, ``None`` if not asked for.
    """
    from espnet2_lamer.compat import before_espnet
    from espnet2_lamer.train.console import espnet_log

    before_espnet()
    torch.set_num_threads(threads)
    # Some of its modules print when they are imported.
    with espnet_log(log), redirect_stdout(io.StringIO()):
        importlib.import_module(module).main(cmd=command)
    return memory.peak_resident() if measure_resident else None


def update_seconds(log: str) -> list[float]:
    """Seconds of every update after the first epoch, data loading included.

    ESPnet's ``train_time`` runs from one update to the next; starting up, validation
    and checkpoints lie outside.

    Raises:
        RuntimeError: The log has no such line.
    """
    lines = re.findall(r" (\d+)epoch:train:\d+-\d+batch: .*train_time=([\d.e+-]+)", log)
    found = [float(seconds) for epoch, seconds in lines if int(epoch) > 1]
    if not found:
        raise RuntimeError("ESPnet logged no update after the first epoch")
    return found


def parameters(log: str) -> str:
    """Total and trainable parameters, as ESPnet counted them."""
    total = re.search(r"Total Number of model parameters: (.*)", log)
    trained = re.search(r"Number of trainable parameters: (.*) \(", log)
    return f"{total[1]}, {trained[1]} trained" if total and trained else "?"


@dataclass
class Training:
    """One finished training: mean seconds per update, updates, memory, log."""

    seconds: float
    updates: int
    resident: int | None
    log: str


def train_form(form: str, size: str, corpus: Corpus, options: Options) -> Training:
    """Train one form for two epochs and measure the second."""
    fresh = bool(options.fresh)
    module = "espnet2" if form == STOCK else "espnet2_lamer"
    # Checkpoints of full training are large: nothing of an experiment stays.
    with tempfile.TemporaryDirectory(dir=corpus.directory) as name:
        directory = Path(name)
        (directory / "config.yaml").write_text(
            yaml.safe_dump(config(form, size, corpus, options)), encoding="utf-8"
        )
        command = [
            *("--config", str(directory / "config.yaml")),
            *("--output_dir", str(directory / "exp")),
            *("--token_list", str(corpus.directory / "tokens.txt")),
            *("--use_preprocessor", "true"),
            *("--ngpu", "0"),
        ]
        for part in ("train", "valid"):
            folder = corpus.directory / part
            command += [
                f"--{part}_data_path_and_name_and_type",
                f"{folder / 'wav.scp'},speech,sound",
                f"--{part}_data_path_and_name_and_type",
                f"{folder / 'text'},text,text",
                *(f"--{part}_shape_file", str(folder / "shape")),
            ]
        resident = memory.call(
            train,
            f"{module}.bin.hubert_train",
            command,
            directory / "train.log",
            torch.get_num_threads(),
            fresh,
            fresh=fresh,
        )
        log = (directory / "train.log").read_text(encoding="utf-8")
    seconds = update_seconds(log)
    return Training(statistics.fmean(seconds), len(seconds), resident, log)


def measure(size: str, corpus: Corpus, options: Options) -> Table:
    """Train all forms in turns and tabulate them."""
    forms = [STOCK, *OURS]
    timings = Timings({form: [] for form in forms})
    last: dict[str, Training] = {}
    for _ in tqdm(
        range(options.rounds), desc=f"stock, {size}", leave=False, disable=None
    ):
        for form in forms:
            last[form] = train_form(form, size, corpus, options)
            timings.seconds[form].append(last[form].seconds)
    whole = sum(corpus.lengths.values()) / RATE
    used = {form: trained_audio(form, corpus, options) for form in forms}
    # Audio per second decides: stock training uses less of it in an update.
    speeds = {
        form: used[form] / (last[form].updates * timings.median(form)) for form in forms
    }
    table = Table(
        f"{size} model, K = {options.units}",
        [
            "form",
            "parameters",
            "updates",
            "s per update",
            "audio s trained per update",
            "of the audio given",
            "audio s trained per s",
            "speed-up over stock",
            "peak MB resident",
        ],
    )
    for form in forms:
        resident = last[form].resident
        table.rows.append(
            [
                form,
                parameters(last[form].log),
                str(last[form].updates),
                f"{timings.median(form):.3f}",
                f"{used[form] / last[form].updates:.1f}",
                f"{used[form] / whole:.0%}",
                f"{speeds[form]:.2f}",
                f"{speeds[form] / speeds[STOCK]:.2f}",
                "-" if resident is None else megabytes(resident),
            ]
        )
    return table


def run(options: Options, device: str) -> list[str | Table]:
    """Measure every size; returns text and tables."""
    with tempfile.TemporaryDirectory() as name:
        corpus = write_corpus(Path(name), options)
        tables = [measure(size, corpus, options) for size in options.sizes]
    explanation = (
        "`espnet2.bin.hubert_train` with `encoder: torchaudio_hubert`, `model: "
        "torchaudio` against `espnet2_lamer.bin.hubert_train`: random weights, the "
        f"same architecture, optimizer, data ({options.utterances} utterances of "
        f"noise, {options.shortest:g}-{options.longest:g} s) and number of updates, "
        f"about {options.bins:g} s of audio each; trainings of each form, in turns: "
        f"{options.rounds}. ESPnet's own `train_time` of the second epoch is used "
        "(data loading in; starting up, validation and checkpoints out). Stock "
        "training cuts every batch to its shortest utterance, ours pads and uses all "
        "audio. On a CPU stock training has no bf16."
    )
    return [explanation, *tables]
