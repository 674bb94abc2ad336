"""Short trials on this machine, from which a plan's times follow."""

import logging
import os
import platform
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espnet2_lamer.constants import SAMPLE_RATE, num_frames
from espnet2_lamer.convert.load import local_source, read_dropouts
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.settle import FROM_DATA, experts_options
from espnet2_lamer.tasks.asr import LamerASRTask
from espnet2_lamer.tasks.hubert import LamerHubertTask
from espnet2_lamer.train.trial import try_batch
from espnet2_lamer.units.teacher import load_teacher

# Audio of a trial's utterance in seconds, and tokens of a head's.
_SECONDS = 5
_TOKENS = 40
_FETCH = "--stop_stage 0 fetches it"
#: Widths of published checkpoints, for the disk of those that are not here.
WIDTHS = {
    "facebook/hubert-base-ls960": 768,
    "facebook/hubert-large-ll60k": 1024,
    "utter-project/mHuBERT-147": 768,
}


@dataclass
class Trials:
    """What was timed, in seconds; None where it could not be, ``why`` says.

    Attributes:
        update: Of a second of audio in an update, forward and backward.
        control: The same of the head-only control.
        forward: Of a second of audio through the base without gradients.
        teacher: Of a second of audio through the teacher.
        teacher_dim: Width of its features.
        dim: Width of the base's states.
        channels: Width of what its convolution stack gives.
        trainable: Parameters that train, and of the base.
        drops: Whether the base drops anything out in ``--upstream_mode train``.
        head: Of an update of the ASR head.
        peak: Bytes at most of this process or GPU.
    """

    update: float | None = None
    control: float | None = None
    forward: float | None = None
    teacher: float | None = None
    teacher_dim: int | None = None
    dim: int | None = None
    trainable: int = 0
    base: int = 0
    channels: int | None = None
    drops: bool = False
    head: float | None = None
    head_parameters: int = 0
    peak: int = 0
    why: tuple[str, ...] = ()


def machine(options: Options) -> str:
    """Say where the trials run."""
    if options.ngpu and torch.cuda.is_available():
        return f"{options.ngpu} x {torch.cuda.get_device_name()}"
    threads = torch.get_num_threads()
    name = platform.processor() or platform.machine()
    return f"CPU {name}, {os.cpu_count()} cores, {threads} threads"


def run_trials(options: Options) -> Trials:
    """Time what is on the disk; nothing is fetched and nothing written."""
    why: list[str] = []
    found = Trials(
        dim=WIDTHS.get(options.base), teacher_dim=WIDTHS.get(options.teacher)
    )
    if options.ngpu and not torch.cuda.is_available():
        found.why = (f"--ngpu {options.ngpu}: not measured: no GPU here",)
        return found
    here = copy(options)
    if base := _on_disk(options.base):
        here.base = base
        why += _tried("base", _time_base, here, found)
        why += _tried("head", _time_head, here, found)
    else:
        text = "base %s: not on disk, so its training is not timed; %s"
        why.append(text % (options.base, _FETCH))
    if options.teacher == "mfcc" or (teacher := _on_disk(options.teacher)):
        here.teacher = "mfcc" if options.teacher == "mfcc" else teacher
        why += _tried("teacher", _time_teacher, here, found)
    else:
        text = "teacher %s: not on disk, so it is not timed; %s"
        why.append(text % (options.teacher, _FETCH))
    found.why = tuple(why)
    return found


def _on_disk(source: str) -> str:
    """Return where a checkpoint lies on this machine, "" if it would be fetched."""
    if Path(source).exists():
        return source
    with suppress(RecipeError):
        return local_source(source, fetch=False)
    return ""


def _tried(what: str, trial: Callable, options: Options, found: Trials) -> list[str]:
    level = logging.root.manager.disable
    # What training will say it says when it trains.
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            trial(options, found)
    except RecipeError as error:
        return [f"{what}: not timed: {error}"]
    finally:
        logging.disable(level)
    return []


def _arguments(options: Options, allocation: str) -> tuple[Any, int]:
    """Arguments of a training, and samples that are computed at a time."""
    config = read_yaml(options.ssl_config)
    words = ["--config", str(options.ssl_config), "--num_classes"]
    words += [str(options.n_clusters), "--encoder_conf", f"base={options.base}"]
    words += experts_options("" if allocation in FROM_DATA else allocation)
    words += ["--ngpu", str(options.ngpu), "--use_preprocessor", "true"]
    args = LamerHubertTask.get_parser().parse_args(words)
    args.token_list = [*map(str, range(options.n_clusters)), "<unk>", "<sos/eos>"]
    args.output_dir, args.seed = None, options.seed
    bins = config.get("device_bins")
    return args, bins if isinstance(bins, int) else args.batch_bins


def _time_base(options: Options, found: Trials) -> None:
    runs = [("update", options.allocation)]
    runs += [("control", "0")] if options.control else []
    for name, allocation in runs:
        args, bins = _arguments(options, allocation)
        model = LamerHubertTask.build_model(args).to(options.device)
        collate = LamerHubertTask.build_collate_fn(args, train=True)
        length = min(collate.max_samples, _SECONDS * SAMPLE_RATE)
        # As large as training's own, within what a plan may take.
        count = max(1, min(bins, 20 * SAMPLE_RATE) // length)
        rng = np.random.default_rng(options.seed)
        rows = [
            (
                f"trial-{number}",
                {
                    "speech": rng.standard_normal(length).astype(np.float32) * 0.1,
                    "text": rng.integers(options.n_clusters, size=num_frames(length)),
                },
            )
            for number in range(count)
        ]
        _, batch = collate(rows)
        batch = {key: value.to(options.device) for key, value in batch.items()}
        if name == "update":
            wav2vec2 = model.encoder.wav2vec2
            projection = wav2vec2.encoder.feature_projection.projection
            found.dim, found.channels = projection.out_features, projection.in_features
            sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
            found.trainable = sum(size for size, trains in sizes if trains)
            found.base = sum(size for size, trains in sizes if not trains)
            speech = batch["speech"][:1]
            # Heads and analysis read a base in float32, as it is loaded.
            with torch.inference_mode():
                took = _clock(lambda m=wav2vec2, x=speech: m.extract_features(x))
            found.forward = took * SAMPLE_RATE / length
            found.drops = any(read_dropouts(options.base).values())
        model.keep_frozen()
        found.peak = max(found.peak, try_batch(model, batch, options.device).peak)
        took = _clock(lambda m=model, x=batch: m(**x)[0].backward())
        setattr(found, name, took * SAMPLE_RATE / batch["speech"].numel())


def _time_teacher(options: Options, found: Trials) -> None:
    layer = None if options.teacher == "mfcc" else options.teacher_layer
    trust = options.trust_s3prl_files
    teacher = load_teacher(options.teacher, layer, options.device, trust)
    samples = np.random.default_rng(0).standard_normal(_SECONDS * SAMPLE_RATE) * 0.1
    samples = samples.astype(np.float32)
    found.teacher = _clock(lambda: teacher.forward(samples)) / _SECONDS
    found.teacher_dim = teacher.dim


def _time_head(options: Options, found: Trials) -> None:
    dim = found.dim
    words = ["--config", str(options.asr_config), "--token_type", "char"]
    words += ["--preencoder_conf", f"input_size={dim}", "--input_size", str(dim)]
    args = LamerASRTask.get_parser().parse_args(words)
    args.token_list = ["<blank>", "<unk>", *map(str, range(_TOKENS)), "<sos/eos>"]
    args.frontend, args.specaug = None, None
    model = LamerASRTask.build_model(args).to(options.device).train()
    found.head_parameters = sum(p.numel() for p in model.parameters())
    (optimizer,) = LamerASRTask.build_optimizers(args, model)
    size, frames = args.batch_size, _SECONDS * 50
    speech = torch.randn(size, frames, dim, device=options.device)
    lengths = torch.full((size,), frames, device=options.device)
    text = torch.randint(2, _TOKENS, (size, _TOKENS), device=options.device)
    counts = torch.full((size,), _TOKENS, device=options.device)

    def update() -> None:
        for _ in range(args.accum_grad):
            model(speech, lengths, text, counts)[0].backward()
        optimizer.step()
        optimizer.zero_grad()

    found.head = _clock(update)


def _clock(work: Callable[[], Any], times: int = 3) -> float:
    """Seconds of a call where nothing else runs, the least of some after the first."""
    work()
    took = []
    for _ in range(times):
        started, used = time.perf_counter(), time.process_time()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            took.append(time.perf_counter() - started)
            continue
        # Waiting for others is not ours; several threads use more than they take.
        passed = time.perf_counter() - started
        took.append(min(passed, time.process_time() - used))
    return min(took)
