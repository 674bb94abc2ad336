"""Greedy transcripts of the test sets, by every system and route."""

import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import soundfile
import torch
from tqdm import tqdm

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.evaluation.feature_store import count_samples
from espnet2_lamer.evaluation.runs import made_from
from espnet2_lamer.fileio.atomic import atomic_dir, write_json
from espnet2_lamer.fileio.datadir import write_table
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.fileio.prints import audio_digest
from espnet2_lamer.recipe.whisper.options import WhisperOptions
from espnet2_lamer.recipe.whisper.scoring import decode_dir
from espnet2_lamer.recipe.whisper.systems import (
    AWARE,
    EXPERTS,
    System,
    expert_dir,
    planned_systems,
)
from espnet2_lamer.recipe.whisper.training import EXPERT, MODEL, build
from espnet2_lamer.recipe.whisper.weights import read_weights
from espnet2_lamer.tasks.asr import load_whisper_model
from espnet2_lamer.whisper.transcription import transcribe

# What Whisper was trained on: without it, Whisper as it is repeats itself endlessly.
# Systems that are trained here learn to do with the silence of their configuration.
_FROZEN_SECONDS = 30.0


def decode(options: WhisperOptions) -> None:
    """Write ``<expdir>/decode/<run>/<lang>/{text,lang}``.

    ``lang`` holds the language that was found, where one was looked for. What was
    decoded by the same model is kept.
    """
    search = read_yaml(options.decode_config)
    for system in planned_systems(options):
        config, checkpoint = model_files(options, system)
        model = None
        for run, route in system.runs().items():
            for lang in options.langs:
                inputs = _inputs(options, system, route, lang, search)
                target = decode_dir(options, run, lang)
                wavs = options.set_dir(lang, "test") / "wav.scp"
                if made_from(target / "inputs.json", inputs, [wavs]):
                    logging.info("%s: already decoded", target)
                    continue
                if model is None:
                    model = load_whisper_model(config, checkpoint, options.device)
                given = lang if route == AWARE else None
                _decode_set(model, wavs, given, search, target, inputs)


def model_files(options: WhisperOptions, system: System) -> tuple[Path, Path | None]:
    """Return config and checkpoint of a system; no checkpoint: as it is built."""
    directory = system.directory(options)
    if system.kind == "frozen":
        lora = {"method": "frozen"}
        return build(options, directory, lora, {}, min_seconds=_FROZEN_SECONDS), None
    checkpoint = None if system.kind == EXPERTS else directory / MODEL
    return directory / "config.yaml", checkpoint


def _inputs(
    options: WhisperOptions, system: System, route: str, lang: str, search: dict
) -> dict[str, Any]:
    weights, more = [system.directory(options) / MODEL], {}
    if system.kind == "frozen":
        weights, more = [], {"min_seconds": _FROZEN_SECONDS}
    elif system.kind == EXPERTS:
        weights = [expert_dir(options, lang) / EXPERT]
    return {
        "whisper": read_weights(options)["sha256"],
        "model": [sha256_file(path) for path in weights],
        # The identifier chooses among all languages.
        "prompts": {lang: options.prompts[lang]} if route == AWARE else options.prompts,
        "route": route,
        "decode": search,
        **more,
        "wav_scp": sha256_file(options.set_dir(lang, "test") / "wav.scp"),
        "audio": audio_digest([options.set_dir(lang, "test") / "wav.scp"]),
    }


def _decode_set(
    model, wav_scp: Path, given: str | None, search: dict, target: Path, inputs: dict
) -> None:
    texts: dict[str, str] = {}
    found: dict[str, str] = {}
    samples = count_samples(wav_scp)
    device = next(model.parameters()).device
    max_tokens = search.get("max_tokens")
    started = time.perf_counter()
    bar = tqdm(
        total=len(samples),
        unit="utterance",
        desc=f"decoding {target.parent.name} {target.name}",
        disable=not sys.stderr.isatty(),
    )
    with bar:
        for utts, wavs, lengths in _batches(samples, search["batch_seconds"]):
            speech = (wavs.to(device), lengths.to(device))
            said = transcribe(model, *speech, given, max_tokens=max_tokens)
            texts |= zip(utts, said.texts, strict=True)
            if said.posterior is not None and given is None:
                found |= zip(utts, said.languages, strict=True)
            bar.update(len(utts))
    seconds = time.perf_counter() - started
    spoken = sum(count for _, _, count in samples) / SAMPLE_RATE
    with atomic_dir(target) as directory:
        lines = {utt: " ".join(text.split()) for utt, text in texts.items()}
        write_table(directory / "text", lines)
        if found:
            write_table(directory / "lang", found)
        times = {"seconds": round(seconds, 2), "speech": round(spoken, 2)}
        write_json(directory / "time.json", times)
        write_json(directory / "inputs.json", inputs)
    done = f"{len(texts)} utterances, {spoken:.0f} s of speech in {seconds:.1f} s"
    logging.info("%s: %s", target, done)


def _batches(
    samples: list[tuple[str, str, int]], batch_seconds: float
) -> Iterator[tuple[list[str], torch.Tensor, torch.Tensor]]:
    """Yield utterances of like length, longest first, padding counted as speech."""
    ordered = sorted(samples, key=lambda sample: -sample[2])
    while ordered:
        size = max(1, int(batch_seconds * SAMPLE_RATE // ordered[0][2]))
        batch, ordered = ordered[:size], ordered[size:]
        wavs = torch.zeros(len(batch), batch[0][2])
        for row, (_, path, count) in enumerate(batch):
            data, _ = soundfile.read(path, dtype="float32")
            wavs[row, :count] = torch.from_numpy(data)
        lengths = torch.tensor([count for _, _, count in batch])
        yield [utt for utt, _, _ in batch], wavs, lengths
