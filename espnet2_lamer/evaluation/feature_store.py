"""Upstream features on disk: computed once per upstream, layer and data set."""

import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import kaldiio
import numpy as np
import soundfile
import torch
from tqdm import tqdm

from espnet2_lamer.asr.frontend.states import selected_states, upstream_states
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path, write_json, write_text
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.fileio.hashing import sha256_value
from espnet2_lamer.fileio.lock import exclusive
from espnet2_lamer.fileio.system import bytes_of, check_space

SAMPLE_RATE = 16000
_SHARD_SECONDS = 600
_BATCH_SECONDS = 40


@dataclass(frozen=True)
class FeatureStore:
    """A complete store.

    Attributes:
        directory: Holds ``feats.scp`` (ESPnet data type ``kaldi_ark``),
            ``speech_shape`` (``utt T,S*D``), ``info.json`` and the ark shards.
        dim: Width D of one state.
        num_states: States S side by side in a frame.
        utterances: Number of utterances.
        frames: Their frames, S3PRL's ``ceil(samples / 320)`` each.
    """

    directory: Path
    dim: int
    num_states: int
    utterances: int
    frames: int

    @property
    def scp(self) -> Path:
        """``utt ark:offset`` lines."""
        return self.directory / "feats.scp"

    @property
    def shape(self) -> Path:
        """``utt T,S*D`` lines."""
        return self.directory / "speech_shape"


def upstream_fingerprint(upstream: torch.nn.Module) -> str:
    """Return a hash of an upstream's architecture and weights."""
    digest = hashlib.sha256(sha256_value(upstream.architecture()).encode())
    for name, value in sorted(upstream.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class StorePlan:
    """Where the features of a data set are or would be, and what they take.

    Attributes:
        directory: Named by a hash of the upstream's weights, the layer choice, the
            data set (ids, paths and file sizes) and the dtype.
        samples: ``(utt, path, samples)`` of every utterance.
        frames: Their frames.
        dim: Width D of one state. num_states: states S side by side.
        hop: Samples per frame.
        dtype: ``float32`` or ``float16``.
    """

    directory: Path
    samples: list[tuple[str, str, int]]
    frames: int
    dim: int
    num_states: int
    hop: int
    dtype: str

    @property
    def stored(self) -> bool:
        """Whether the store is complete."""
        return (self.directory / "info.json").is_file()

    @property
    def gigabytes(self) -> float:
        """What the features take on disk, in 10^9 bytes."""
        values = self.frames * self.num_states * self.dim
        return values * np.dtype(self.dtype).itemsize / 1e9


def plan_store(
    upstream: torch.nn.Module,
    layer: int | str,
    data_dir: str | Path,
    root: str | Path,
    dtype: str = "float32",
    fingerprint: str | None = None,
) -> StorePlan:
    """Look at a data set, and say where its features belong and how large they are.

    Args:
        upstream: As ``espnet2_lamer.load_model`` returns it.
        layer: One state index or ``"all"``.
        data_dir: Has ``wav.scp`` with 16 kHz mono files.
        root: Parent directory of all stores.
        dtype: ``"float32"`` or ``"float16"``.
        fingerprint: The upstream's, where it is known already.

    Raises:
        RecipeError: A file is missing, unreadable or not 16 kHz mono.
    """
    if dtype not in ("float32", "float16"):
        raise RecipeError(f"store dtype: found {dtype!r}, expected float32 or float16")
    samples = count_samples(Path(data_dir) / "wav.scp")
    key = sha256_value(
        [
            "v1",
            fingerprint or upstream_fingerprint(upstream),
            layer,
            dtype,
            [[utt, path, os.path.getsize(path)] for utt, path, _ in samples],
        ]
    )
    return StorePlan(
        directory=Path(root) / key[:16],
        samples=samples,
        frames=_frames(samples, upstream.hop),
        dim=upstream.dim,
        num_states=len(selected_states(upstream.num_layers, layer)),
        hop=upstream.hop,
        dtype=dtype,
    )


def store_features(
    upstream: torch.nn.Module,
    layer: int | str,
    data_dir: str | Path,
    root: str | Path,
    dtype: str = "float32",
    device: str = "cpu",
    plan: StorePlan | None = None,
) -> FeatureStore:
    """Return the store of a data set's features, computing what is missing.

    Every run that needs the same features shares them, see :class:`StorePlan`. Shards
    are written as they come and an interrupted call goes on after the last one; the
    store's directory appears when all are there. A second process that needs the same
    store waits for the first.

    Args:
        upstream: In eval mode, as ``espnet2_lamer.load_model`` returns it.
        layer: One state index or ``"all"``.
        data_dir: Has ``wav.scp`` with 16 kHz mono files.
        root: Parent directory of all stores.
        dtype: ``"float32"`` or ``"float16"`` (half the size; kaldiio arrays in NPY).
        device: Where the upstream runs.
        plan: What :func:`plan_store` returned for the same arguments.

    Raises:
        RecipeError: A file is missing, unreadable, not 16 kHz mono or too short, a
            value does not fit into float16, or the store that is there has another
            width.
    """
    plan = plan or plan_store(upstream, layer, data_dir, root, dtype)
    directory = plan.directory
    with exclusive(directory):
        if plan.stored:
            logging.info("%s: features are in %s", data_dir, directory)
        else:
            _store(plan, upstream, layer, data_dir, dtype, device)
    return _open(plan)


def _store(
    plan: StorePlan,
    upstream: torch.nn.Module,
    layer: int | str,
    data_dir: str | Path,
    dtype: str,
    device: str,
) -> None:
    directory = plan.directory
    logging.info(
        "%s: storing %d utterances, %d frames x %d values, %s: %.1f MB in %s",
        data_dir,
        len(plan.samples),
        plan.frames,
        plan.num_states * plan.dim,
        dtype,
        plan.gigabytes * 1e3,
        directory,
    )
    unfinished = directory.with_name(directory.name + ".unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    check_space(
        directory,
        plan.gigabytes * 1e9 - bytes_of(unfinished.glob("*.ark")),
        f"features of {data_dir}",
        "lower --feature_store_gb, use --store_dtype float16, or name another folder "
        "with --dumpdir",
    )
    upstream = upstream.to(device).eval()
    shards = _shards(plan.samples)
    with tqdm(
        total=plan.frames,
        unit="frame",
        desc=f"features {Path(data_dir).name}",
        disable=not sys.stderr.isatty(),
    ) as progress:
        for number, shard in enumerate(shards):
            name = f"feats.{number}"
            # The index is written after its ark: it marks the shard as complete.
            if not (unfinished / f"{name}.json").is_file():
                features = _compute(upstream, layer, shard, device)
                _write_shard(unfinished, name, features, dtype)
            progress.update(_frames(shard, plan.hop))
    _finish(unfinished, plan, len(shards))


def _frames(samples: list[tuple[str, str, int]], hop: int) -> int:
    return sum(-(-count // hop) for _, _, count in samples)


def _open(plan: StorePlan) -> FeatureStore:
    path = plan.directory / "info.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    for key in ("dim", "num_states", "frames"):
        if info.get(key) != getattr(plan, key):
            raise RecipeError(
                f"{path}: {key}: found {info.get(key)}, expected {getattr(plan, key)} "
                "by the upstream, layer and audio that this store is named for; it "
                "was changed: remove the directory, and it is computed anew"
            )
    return FeatureStore(directory=plan.directory, **info)


def count_samples(wav_scp: Path) -> list[tuple[str, str, int]]:
    """Return ``(utt, path, samples)`` of every utterance, checking the format."""
    found = []
    for utt, path in read_table(wav_scp, "stage 9").items():
        try:
            info = soundfile.info(path)
        except (soundfile.LibsndfileError, OSError) as error:
            raise RecipeError(
                f"{wav_scp}: {utt}: cannot read {path}: {error}; rerun stage 2"
            ) from error
        if (info.samplerate, info.channels) != (SAMPLE_RATE, 1):
            raise RecipeError(
                f"{path}: found {info.samplerate} Hz, {info.channels} channels, "
                f"expected {SAMPLE_RATE} Hz mono; rerun stage 2"
            )
        found.append((utt, path, info.frames))
    if not found:
        raise RecipeError(f"{wav_scp}: no utterances; rerun the stage that makes it")
    return found


def _shards(samples: list[tuple[str, str, int]]) -> list[list[tuple[str, str, int]]]:
    """Cut the utterances, by length, into shards of about ten minutes."""
    shards: list[list[tuple[str, str, int]]] = [[]]
    seconds = 0.0
    for item in sorted(samples, key=lambda item: (item[2], item[0])):
        if shards[-1] and seconds + item[2] / SAMPLE_RATE > _SHARD_SECONDS:
            shards.append([])
            seconds = 0.0
        shards[-1].append(item)
        seconds += item[2] / SAMPLE_RATE
    return shards


def read_batches(
    samples: list[tuple[str, str, int]],
) -> Iterator[tuple[list[str], torch.Tensor, torch.Tensor]]:
    """Yield ids, zero-padded waveforms ``[B, n]`` and lengths ``[B]``, shortest first.

    A batch holds at most 40 s including padding, or one utterance.
    """
    pending: list[tuple[str, str, int]] = []

    def width(count: int) -> int:
        # Whole seconds: on a CPU every new shape compiles new kernels.
        return -(-count // SAMPLE_RATE) * SAMPLE_RATE

    def load() -> tuple[list[str], torch.Tensor, torch.Tensor]:
        wavs = torch.zeros(len(pending), width(pending[-1][2]))
        for row, (_, path, count) in enumerate(pending):
            wavs[row, :count] = torch.from_numpy(
                soundfile.read(path, dtype="float32")[0]
            )
        lengths = torch.tensor([count for _, _, count in pending])
        return [utt for utt, _, _ in pending], wavs, lengths

    for item in sorted(samples, key=lambda item: (item[2], item[0])):
        size = (len(pending) + 1) * width(item[2])
        if pending and size > _BATCH_SECONDS * SAMPLE_RATE:
            yield load()
            pending = []
        pending.append(item)
    if pending:
        yield load()


def _compute(
    upstream: torch.nn.Module,
    layer: int | str,
    samples: list[tuple[str, str, int]],
    device: str,
) -> dict[str, np.ndarray]:
    features = {}
    for utts, wavs, lengths in read_batches(samples):
        states, frames = upstream_states(
            upstream, wavs.to(device), lengths.to(device), layer
        )
        for utt, state, count in zip(utts, states.cpu(), frames.tolist(), strict=True):
            features[utt] = state[:count].numpy()
    return features


def _write_shard(
    directory: Path, name: str, features: dict[str, np.ndarray], dtype: str
) -> None:
    index = []
    with (
        atomic_path(directory / f"{name}.ark") as temporary,
        open(temporary, "wb") as ark,
    ):
        for utt in sorted(features, key=str.encode):
            with np.errstate(over="ignore"):
                array = features[utt].astype(dtype)
            if not np.isfinite(array).all():
                raise RecipeError(
                    f"{utt}: a feature does not fit into {dtype} or is not finite; "
                    "store float32, and check the audio and the upstream"
                )
            index.append([utt, ark.tell() + len(utt.encode()) + 1, len(array)])
            # Kaldi's own matrices know no float16: NPY entries keep the dtype.
            kaldiio.save_ark(
                ark,
                {utt: array},
                write_function="numpy" if dtype == "float16" else None,
            )
    write_json(directory / f"{name}.json", index)


def _finish(unfinished: Path, plan: StorePlan, num_shards: int) -> None:
    directory, width = plan.directory, plan.dim * plan.num_states
    entries = {}
    for number in range(num_shards):
        index = json.loads((unfinished / f"feats.{number}.json").read_text())
        for utt, offset, length in index:
            entries[utt] = (f"{directory / f'feats.{number}.ark'}:{offset}", length)
    order = sorted(entries, key=str.encode)
    write_text(
        unfinished / "feats.scp", "".join(f"{u} {entries[u][0]}\n" for u in order)
    )
    write_text(
        unfinished / "speech_shape",
        "".join(f"{u} {entries[u][1]},{width}\n" for u in order),
    )
    store = FeatureStore(
        directory, plan.dim, plan.num_states, len(entries), plan.frames
    )
    info = {k: v for k, v in asdict(store).items() if k != "directory"}
    write_json(unfinished / "info.json", info)
    if directory.exists():  # without info.json: not a store
        raise RecipeError(f"{directory}: exists but is no feature store; remove it")
    os.replace(unfinished, directory)
