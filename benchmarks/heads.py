"""Section ``heads``: training an ML-SUPERB head, stored features against the upstream.

Every form is ESPnet's own training of the official head on the same noise, with the
upstream frozen: by ESPnet's ``frontend: s3prl``, by ours, and on stored features.
"""

import io
import statistics
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import yaml
from tqdm import tqdm

from benchmarks.harness import Timings
from benchmarks.options import option
from benchmarks.report import Table, megabytes, verdict
from benchmarks.stock import update_seconds
from espnet2_lamer.fileio.datadir import write_table

TITLE = "training heads, stored features against the upstream in the loop"
DEVICES = ("cpu", "cuda")
RATE = 16000
CONFIG = Path(__file__).parents[1] / "conf" / "train_asr_mlsuperb.yaml"
STOCK = "ESPnet `frontend: s3prl`"
LIVE = "`frontend: lamer_upstream`"
STORED = "`frontend: stored_features`"
TARGET = 10


@dataclass(frozen=True)
class Options:
    """Sizes; the defaults are HuBERT-Large and the official head."""

    depth: int = option(24, "transformer layers of the upstream")
    dim: int = option(1024, "its width")
    inner: int = option(4096, "width inside its FFN")
    heads: int = option(16, "its attention heads")
    channels: int = option(512, "channels of its convolutions")
    layers: tuple[str, ...] = option(("22", "all"), "layer to read, or all: weighted")
    dtype: str = option("float16", "of stored features")
    utterances: int = option(16, "training utterances")
    seconds: float = option(
        5.0, "mean length; they are between half and one and a half"
    )
    batch: int = option(8, "utterances per iteration (the official number)")
    iterations: int = option(2, "timed iterations of a training")
    rounds: int = option(1, "times that every form trains")


QUICK = Options(
    depth=2,
    dim=16,
    inner=32,
    heads=2,
    channels=8,
    layers=("1",),
    utterances=2,
    seconds=0.6,
    batch=2,
    iterations=1,
)


def write_noise(directory: Path, options: Options) -> dict[str, float]:
    """Write ``train`` and one utterance of ``dev``; return seconds by set."""
    generator = np.random.default_rng(0)
    lengths = options.seconds * np.linspace(0.5, 1.5, options.utterances)
    total = {}
    for name, seconds in (("train", lengths), ("dev", [options.seconds / 2])):
        wavs, texts = {}, {}
        for number, duration in enumerate(seconds):
            utt = f"{name}{number:04d}"
            path = directory / "audio" / f"{utt}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = 0.1 * generator.standard_normal(int(duration * RATE))
            soundfile.write(path, noise, RATE)
            wavs[utt] = str(path)
            letters = generator.choice(list("ABCDE"), size=max(1, int(4 * duration)))
            texts[utt] = "".join(letters)
        write_table(directory / name / "wav.scp", wavs)
        write_table(directory / name / "text", texts)
        total[name] = float(sum(seconds))
    return total


def write_upstream(directory: Path, options: Options) -> Path:
    """Write a random HuBERT-Large, or one of other sizes, as Hugging Face does."""
    from espnet2_lamer.convert.architecture import build_hubert
    from espnet2_lamer.convert.huggingface import save_huggingface

    convolutions = [[options.channels, 10, 5]] + [[options.channels, 3, 2]] * 4
    convolutions += [[options.channels, 2, 2]] * 2
    torch.manual_seed(0)
    model = build_hubert(
        {
            "extractor_conv_layer_config": convolutions,
            "encoder_embed_dim": options.dim,
            "encoder_num_layers": options.depth,
            "encoder_num_heads": options.heads,
            "encoder_ff_interm_features": options.inner,
            "encoder_pos_conv_kernel": 128 if options.dim >= 256 else 8,
            "encoder_pos_conv_groups": 16 if options.dim >= 256 else 2,
        }
    )
    save_huggingface(model, directory)
    return directory


def write_config(path: Path, options: Options) -> Path:
    """Write the official config, cut to two epochs of a few iterations."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config |= {
        "batch_size": options.batch,
        "max_epoch": 2,
        "num_iters_per_epoch": options.iterations,
        # Every iteration an update, so that ESPnet logs its time.
        "accum_grad": 1,
        "log_interval": 1,
        # Loading is part of what is timed, in the same process for every form.
        "num_workers": 0,
        "keep_nbest_models": 1,
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Prepared:
    """What the forms train on, for one choice of layer.

    Attributes:
        directory: Has ``tokens.txt`` and per set texts, shapes, features and audio.
        num_states: Stored states per frame.
        store_seconds: What computing and writing the features took.
        store_bytes: Their size, of the training set.
    """

    directory: Path
    num_states: int
    store_seconds: float
    store_bytes: float


def prepare(
    root: Path, upstream: torch.nn.Module, layer: str, options: Options, device: str
) -> Prepared:
    """Store the features of both sets, and write what ESPnet reads."""
    from espnet2_lamer.evaluation.feature_store import plan_store, store_features
    from espnet2_lamer.evaluation.tokens import build_vocabulary, check_targets
    from espnet2_lamer.fileio.datadir import read_table

    directory = root / f"layer_{layer}"
    choice = layer if layer == "all" else int(layer)
    plans, seconds = {}, 0.0
    for name in ("train", "dev"):
        plan = plan_store(upstream, choice, root / name, root / "store", options.dtype)
        start = time.perf_counter()
        store = store_features(plan, device)
        seconds += time.perf_counter() - start if name == "train" else 0.0
        plans[name] = plan
        texts = read_table(root / name / "text")
        if name == "train":
            vocabulary = build_vocabulary(list(texts.values()), "char", directory)
        lengths = check_targets(texts, vocabulary, name)
        size = len(vocabulary.tokens)
        shapes = {utt: f"{length},{size}" for utt, length in lengths.items()}
        for file, table in (
            ("text", texts),
            ("text_shape", shapes),
            ("audio.scp", read_table(root / name / "wav.scp")),
            ("feats.scp", read_table(store.scp)),
            ("speech_shape", read_table(store.shape)),
        ):
            write_table(directory / name / file, table)
    plan = plans["train"]
    return Prepared(directory, plan.num_states, seconds, 1e9 * plan.gigabytes)


def frontend_options(
    form: str, source: Path, layer: str, prepared: Prepared, dim: int
) -> list[str]:
    """Return ESPnet's options for the input of a form."""
    choice = {
        STORED: ["stored_features", f"dim={dim}", f"num_states={prepared.num_states}"],
        LIVE: ["lamer_upstream", f"upstream={source}", f"layer={layer}"],
        STOCK: [
            "s3prl",
            f"frontend_conf={{upstream: hf_hubert_custom, path_or_url: {source}}}",
            f"multilayer_feature={'true' if layer == 'all' else 'false'}",
            f"layer={-1 if layer == 'all' else layer}",
        ],
    }[form]
    options = ["--frontend", choice[0]]
    for word in choice[1:]:
        options += ["--frontend_conf", word]
    if form == STOCK:
        options += ["--freeze_param", "frontend.upstream"]
    file, kind = (
        ("feats.scp", "kaldi_ark") if form == STORED else ("audio.scp", "sound")
    )
    for espnet_name, name in (("train", "train"), ("valid", "dev")):
        data = prepared.directory / name
        for word in (f"{data / file},speech,{kind}", f"{data / 'text'},text,text"):
            options += [f"--{espnet_name}_data_path_and_name_and_type", word]
        for shape in ("speech_shape", "text_shape"):
            options += [f"--{espnet_name}_shape_file", str(data / shape)]
    return [*options, "--preencoder_conf", f"input_size={dim}"]


def train(command: list[str], log: Path) -> float:
    """Train through ESPnet; return mean seconds per iteration of the second epoch."""
    from espnet2_lamer.fileio.trust import trusting_s3prl_files
    from espnet2_lamer.tasks.asr import LamerASRTask
    from espnet2_lamer.train.console import espnet_log

    with (
        espnet_log(log),
        # Some of ESPnet's modules print when they are imported.
        redirect_stdout(io.StringIO()),
        # S3PRL reads an upstream that was made here.
        trusting_s3prl_files(True),
    ):
        LamerASRTask.main(cmd=command)
    return statistics.fmean(update_seconds(log.read_text(encoding="utf-8")))


def measure(
    root: Path, source: Path, layer: str, options: Options, device: str
) -> tuple[Prepared, Timings]:
    """Train all forms in turns."""
    from espnet2_lamer import load_model

    upstream = load_model(source)
    prepared = prepare(root, upstream, layer, options, device)
    dim = upstream.dim
    del upstream
    config = write_config(root / "head.yaml", options)
    timings = Timings({form: [] for form in (STOCK, LIVE, STORED)})
    for _ in tqdm(
        range(options.rounds), desc=f"heads, layer {layer}", leave=False, disable=None
    ):
        for form in timings.seconds:
            # Checkpoints of the stock form hold the upstream: nothing of them stays.
            with tempfile.TemporaryDirectory(dir=root) as name:
                command = [
                    *("--config", str(config), "--output_dir", name),
                    *("--ngpu", str(int(device == "cuda"))),
                    *("--token_type", "char"),
                    *("--token_list", str(prepared.directory / "tokens.txt")),
                    *frontend_options(form, source, layer, prepared, dim),
                ]
                seconds = train(command, Path(name) / "train.log")
            timings.seconds[form].append(seconds)
    return prepared, timings


def run(options: Options, device: str) -> list[str | Table]:
    """Measure every choice of layer; returns text and tables."""
    from espnet2_lamer.compat import before_espnet, patch_torchaudio_for_s3prl

    before_espnet()
    patch_torchaudio_for_s3prl()
    official = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["num_iters_per_epoch"]
    tables = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        total = write_noise(root, options)
        source = write_upstream(root / "upstream", options)
        for layer in options.layers:
            prepared, timings = measure(root, source, layer, options, device)
            tables.append(_table(layer, prepared, timings, official))
    spread = f"{0.5 * options.seconds:g}-{1.5 * options.seconds:g} s"
    explanation = (
        f"ESPnet's ASR training of `{CONFIG.name}` (batch {options.batch}, SpecAug and "
        "dropout on, an update in every iteration) on a frozen random HuBERT of "
        f"{options.depth} layers x {options.dim}, {options.utterances} utterances of "
        f"noise, {spread}, "
        f"{total['train']:.0f} s in all; features stored as {options.dtype}. Time per "
        f"iteration is ESPnet's `train_time` of the second epoch of "
        f"{options.iterations} iterations, data loading in, validation and checkpoints "
        f"out; trainings of each form, in turns: {options.rounds}. An epoch of the "
        f"official monolingual schedule has {official} iterations. Features are "
        "computed once for all epochs and heads."
    )
    return [explanation, *tables]


def _table(layer: str, prepared: Prepared, timings: Timings, official: int) -> Table:
    what = "weighted sum of all layers" if layer == "all" else f"layer {layer}"
    table = Table(
        f"{what}; storing features once: {prepared.store_seconds:.1f} s, "
        f"{megabytes(prepared.store_bytes)} MB",
        [
            *("form", "s per iteration", "s per epoch"),
            *("speed-up over stock", "speed-up over upstream in the loop"),
        ],
    )
    for form in timings.seconds:
        seconds = timings.median(form)
        cells = [f"{timings.median(other) / seconds:.1f}" for other in (STOCK, LIVE)]
        if form == STORED:
            for number, other in enumerate((STOCK, LIVE)):
                ratio = timings.median(other) / seconds
                cells[number] += f" ({verdict(ratio, '>=', TARGET)})"
        table.rows.append([form, f"{seconds:.4f}", f"{seconds * official:.1f}", *cells])
    return table
