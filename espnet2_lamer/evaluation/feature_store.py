"""Upstream features on disk: computed once per upstream, layer and data set.

ESPnet reads them itself, so they are Kaldi arks; how they are cut into shards, and how
a killed run goes on, is :mod:`espnet2_lamer.fileio.shards`'s.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import kaldiio
import numpy as np
import soundfile
import torch

from espnet2_lamer.asr.frontend.states import selected_states, upstream_states
from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.fileio.hashing import sha256_value
from espnet2_lamer.fileio.locks import exclusive
from espnet2_lamer.fileio.prints import audio_digest, older_than
from espnet2_lamer.fileio.shards import Shards

_SHARD_SECONDS = 600
_BATCH_SECONDS = 40
#: Utterance, path, number of samples.
Samples = list[tuple[str, str, int]]


def upstream_fingerprint(upstream: torch.nn.Module) -> str:
    """Return a hash of an upstream's architecture and weights."""
    # Names stores and heads on disk; sha256_tensors would give them other names.
    digest = hashlib.sha256(sha256_value(upstream.architecture()).encode())
    for name, value in sorted(upstream.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class StorePlan:
    """Where the features of a data set are or would be, and what they take.

    They are of one state of ``upstream``, an index, or of ``"all"`` of them.

    Attributes:
        data_dir: Has ``wav.scp`` with 16 kHz mono files.
        directory: Named by a hash of the upstream's weights, the layer choice, the
            data set (ids, paths and file sizes) and the dtype.
        samples: ``(utt, path, samples)`` of every utterance.
        audio: Digest of what the files hold.
    """

    upstream: torch.nn.Module
    layer: int | str
    dtype: str
    data_dir: Path
    directory: Path
    samples: Samples
    audio: str

    @property
    def scp(self) -> Path:
        """``utt ark:offset`` lines (ESPnet data type ``kaldi_ark``)."""
        return self.directory / "feats.scp"

    @property
    def shape(self) -> Path:
        """``utt T,S*D`` lines."""
        return self.directory / "speech_shape"

    @property
    def num_states(self) -> int:
        """States S side by side."""
        return len(selected_states(self.upstream.num_layers, self.layer))

    @property
    def frames(self) -> dict[str, int]:
        """Every utterance's frames, as many as S3PRL's: ``ceil(samples / hop)``."""
        return {utt: -(-n // self.upstream.hop) for utt, _, n in self.samples}

    @property
    def shapes(self) -> dict[str, str]:
        """Every utterance's shape as ESPnet has it: ``T,S*D``."""
        width = self.upstream.dim * self.num_states
        return {utt: f"{frames},{width}" for utt, frames in self.frames.items()}

    @property
    def stored(self) -> bool:
        """Whether the store is complete, and of this audio."""
        path = self.directory / "info.json"
        if not path.is_file():
            return False
        audio = json.loads(path.read_text(encoding="utf-8")).get("audio")
        tables = [self.data_dir / "wav.scp"]
        return audio == self.audio if audio else older_than(path, tables)

    @property
    def gigabytes(self) -> float:
        """What the features take on disk, in 10^9 bytes."""
        values = sum(self.frames.values()) * self.upstream.dim * self.num_states
        return values * np.dtype(self.dtype).itemsize / 1e9

    @property
    def info(self) -> dict[str, int]:
        """What ``info.json`` tells of a complete store."""
        return {
            "dim": self.upstream.dim,
            "num_states": self.num_states,
            "utterances": len(self.samples),
            "frames": sum(self.frames.values()),
        }


def plan_store(
    upstream: torch.nn.Module,
    layer: int | str,
    data_dir: str | Path,
    root: str | Path,
    dtype: str = "float32",
    fingerprint: str | None = None,
) -> StorePlan:
    """Look at a data set, and say where below ``root`` its features belong.

    The other arguments are those of :class:`StorePlan`; ``float16`` takes half the size
    (kaldiio arrays in NPY). ``fingerprint`` is the upstream's, where it is known.

    Raises:
        RecipeError: A file is missing, unreadable or not 16 kHz mono.
    """
    if dtype not in ("float32", "float16"):
        raise RecipeError(f"store dtype: found {dtype!r}, expected float32 or float16")
    wav_scp = Path(data_dir) / "wav.scp"
    samples, audio = count_samples(wav_scp), audio_digest([wav_scp])
    key = sha256_value(
        [
            "v1",
            fingerprint or upstream_fingerprint(upstream),
            layer,
            dtype,
            [[utt, path, os.path.getsize(path)] for utt, path, _ in samples],
        ]
    )
    directory = Path(root) / key[:16]
    return StorePlan(upstream, layer, dtype, wav_scp.parent, directory, samples, audio)


def store_features(plan: StorePlan, device: str = "cpu") -> StorePlan:
    """Complete the store of a data set's features, computing what is missing.

    Every run that needs the same features shares them. Shards are written as they come
    and an interrupted call goes on after the last one; the store's directory appears
    when all are there. A second process that needs the same store waits for the first.
    The upstream, in eval mode, runs on ``device``.

    Raises:
        RecipeError: An utterance is too short, a value does not fit into float16, or
            the store that is there has another width.
    """
    with exclusive(plan.directory):
        if plan.stored:
            logging.info("%s: features are in %s", plan.data_dir, plan.directory)
        else:
            _store(plan, device)
    path = plan.directory / "info.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    for key, expected in plan.info.items():
        if info.get(key) != expected:
            raise RecipeError(
                f"{path}: {key}: found {info.get(key)}, expected {expected} by the "
                "upstream, layer and audio that this store is named for; it was "
                "changed: remove the directory, and it is computed anew"
            )
    return plan


def _store(plan: StorePlan, device: str) -> None:
    directory = plan.directory
    frames, width = plan.info["frames"], plan.upstream.dim * plan.num_states
    size = f"{frames} frames x {width} values, {plan.dtype}: {plan.gigabytes * 1e3:.1f}"
    logging.info("%s: storing %s MB in %s", plan.data_dir, size, directory)
    unfinished = directory.with_name(directory.name + ".unfinished")
    for old in unfinished.glob("feats.*.*"):  # shards of an earlier version
        old.unlink()
    shards = Shards(unfinished, directory.name + plan.audio, ".ark")
    shards.check_space(
        plan.gigabytes * 1e9,
        f"features of {plan.data_dir}",
        "lower --feature_store_gb, use --store_dtype float16, or name another folder "
        "with --dumpdir",
    )
    plan.upstream.to(device).eval()
    # In this process: workers would need the upstream's weights.
    parts = [*_groups(plan.samples, _spoken, _SHARD_SECONDS * SAMPLE_RATE)]
    work, name = partial(_write_shard, plan, device), f"features {plan.data_dir.name}"
    markers = shards.make(parts, work, 1, name)
    # A head trains without it.
    plan.upstream.to("cpu")
    scp = {
        utt: f"{directory / marker['file']}:{offset}"
        for marker in markers
        for utt, offset, _ in marker["utts"]
    }
    write_table(unfinished / plan.scp.name, scp)
    write_table(unfinished / plan.shape.name, plan.shapes)
    write_json(unfinished / "info.json", plan.info | {"audio": plan.audio})
    shards.clean(keep={marker["file"] for marker in markers})
    if (directory / "info.json").is_file():
        logging.info("%s: the audio changed, its features are replaced", directory)
        shutil.rmtree(directory)
    if directory.exists():
        raise RecipeError(f"{directory}: exists but is no feature store; remove it")
    os.replace(unfinished, directory)


def count_samples(wav_scp: Path) -> Samples:
    """Return ``(utt, path, samples)`` of every utterance, checking the format."""
    found = []
    for utt, path in read_table(wav_scp, "benchmark data preparation").items():
        try:
            info = soundfile.info(path)
        except (soundfile.LibsndfileError, OSError) as error:
            raise RecipeError(
                f"{wav_scp}: {utt}: cannot read {path}: {error}; run the audio "
                "formatting again"
            ) from error
        if (info.samplerate, info.channels) != (SAMPLE_RATE, 1):
            raise RecipeError(
                f"{path}: found {info.samplerate} Hz, {info.channels} channels, "
                f"expected {SAMPLE_RATE} Hz mono; run the audio formatting again"
            )
        found.append((utt, path, info.frames))
    if not found:
        raise RecipeError(f"{wav_scp}: no utterances; make it again")
    return found


def _groups(
    samples: Samples, size: Callable[[Samples], int], most: float
) -> Iterator[Samples]:
    """Put utterances together, shortest first, while the size in samples allows it."""
    group: Samples = []
    for item in sorted(samples, key=lambda item: (item[2], item[0])):
        if group and size([*group, item]) > most:
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _spoken(group: Samples) -> int:
    return sum(count for _, _, count in group)


def _width(group: Samples) -> int:
    # Whole seconds: on a CPU every new shape compiles new kernels.
    return -(-group[-1][2] // SAMPLE_RATE) * SAMPLE_RATE


def read_batches(
    samples: Samples,
) -> Iterator[tuple[list[str], torch.Tensor, torch.Tensor]]:
    """Yield ids, zero-padded waveforms ``[B, n]`` and lengths ``[B]``, shortest first.

    A batch holds at most 40 s including padding, or one utterance.
    """
    most = _BATCH_SECONDS * SAMPLE_RATE
    for group in _groups(samples, lambda group: len(group) * _width(group), most):
        wavs = torch.zeros(len(group), _width(group))
        for wav, (_, path, count) in zip(wavs, group, strict=True):
            speech = soundfile.read(path, dtype="float32")[0]
            wav[:count] = torch.from_numpy(speech)
        lengths = torch.tensor([count for _, _, count in group])
        yield [utt for utt, _, _ in group], wavs, lengths


def _compute(plan: StorePlan, samples: Samples, device: str) -> dict[str, np.ndarray]:
    features = {}
    for utts, wavs, lengths in read_batches(samples):
        states, frames = upstream_states(
            plan.upstream, wavs.to(device), lengths.to(device), plan.layer
        )
        for utt, state, count in zip(utts, states.cpu(), frames.tolist(), strict=True):
            features[utt] = state[:count].numpy()
    return features


def _write_shard(
    plan: StorePlan, device: str, samples: Samples, path: Path
) -> dict[str, Any]:
    started = time.perf_counter()
    features = _compute(plan, samples, device)
    seconds = time.perf_counter() - started
    utts = []
    with open(path, "wb") as ark:
        for utt in sorted(features, key=str.encode):
            with np.errstate(over="ignore"):
                array = features[utt].astype(plan.dtype)
            if not np.isfinite(array).all():
                raise RecipeError(
                    f"{utt}: a feature does not fit into {plan.dtype} or is not "
                    "finite; store float32, and check the audio and the upstream"
                )
            utts.append([utt, ark.tell() + len(utt.encode()) + 1, len(array)])
            # Kaldi's own matrices know no float16: NPY entries keep the dtype.
            form = "numpy" if plan.dtype == "float16" else None
            kaldiio.save_ark(ark, {utt: array}, write_function=form)
    audio = _spoken(samples) / SAMPLE_RATE
    return {"utts": utts, "audio": audio, "forward": seconds}
