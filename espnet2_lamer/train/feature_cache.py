"""Output of the frozen convolution stack on disk: computed once per base and audio.

A frozen stack gives the same for an utterance in every epoch. For those that are not
cropped it is computed before the first update, one at a time, and read back as it was:
shard by shard, so that a killed run goes on (:mod:`espnet2_lamer.fileio.shards`).
"""

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from espnet2_lamer.constants import RECEPTIVE_FIELD, SAMPLE_RATE, STRIDE, num_frames
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.hashing import sha256_file, sha256_tensors, sha256_value
from espnet2_lamer.fileio.locks import exclusive
from espnet2_lamer.fileio.prints import file_prints
from espnet2_lamer.fileio.shards import Shards
from espnet2_lamer.fileio.system import bytes_of, size
from espnet2_lamer.fileio.tables import Table
from espnet2_lamer.precision import AMP_DTYPES
from espnet2_lamer.train.utterances import Lengths

# Of what a store holds and how.
_VERSION = 1
# Frames of a shard, 10 min, and shards of little audio, at least.
_SHARD_FRAMES = 30_000
_FEWEST = 32
# What rounding may change, of the largest value; far below what another network gives.
_ROUNDING = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
# Below so many passes over the data a cache costs what it saves.
_FEW_PASSES = 1.5
_EXTRACTOR = "encoder.hubert_pretrain_model.wav2vec2.feature_extractor"


@dataclass(eq=False)
class FeatureCache:
    """Features of utterances, read from files that are mapped into memory.

    ``place`` is the first frame of each utterance (by its number in ``lengths``) among
    those of all ``shards [frames, C]``, -1 where it has none.
    """

    lengths: Lengths
    place: NDArray[np.int64]
    shards: Sequence[Tensor]

    def __post_init__(self) -> None:
        self._starts = np.cumsum([0, *map(len, self.shards)])

    def has(self, utts: NDArray) -> NDArray[np.bool_]:
        """Which of these utterances, by number, are there."""
        return self.place[utts] >= 0

    def read(self, name: str) -> dict[str, Any]:
        """Return ``features [T, C]`` and ``samples`` of an utterance that is there."""
        (utt,) = self.lengths.numbers([name.encode()])
        samples, first = int(self.lengths.samples[utt]), self.place[utt]
        shard = int(np.searchsorted(self._starts, first, "right")) - 1
        start = int(first - self._starts[shard])
        features = self.shards[shard][start : start + num_frames(samples)]
        return {"features": features, "samples": samples}


def use_feature_cache(
    model: nn.Module, factories: Mapping[str, Any], options: Any, device: str
) -> None:
    """Let the factories of ``train`` and ``valid`` serve features, if asked to.

    The model is loaded, prepared and on its device. Ranks, and other trainings, that
    need the same features wait for whoever computes them. Validation comes first: it
    hears everything in each epoch.

    Raises:
        RecipeError: The convolution stack trains, audio is of another kind than files
            of their own, the disk is too small, or a store does not hold what the
            network gives.
    """
    if not options.feature_cache_gb:
        return
    _check_frozen(model, options.feature_cache_gb)
    dtype = AMP_DTYPES[model.amp_dtype]
    root = Path(options.feature_cache_dir or Path(options.output_dir, "feature_cache"))
    room, kept = 1e9 * options.feature_cache_gb, set()
    for part in ("valid", "train"):
        data = getattr(options, f"{part}_data_path_and_name_and_type")
        plan = _Plan(part, factories[part], _audio_table(data), model, dtype, device)
        cache = plan.complete(root, room)
        room -= plan.bytes_of(cache)
        kept.add(plan.directory(root))
        if cache is not None:
            factories[part].use(cache)
            same = _compared(model, factories[part], dtype, device)
            logging.info("feature cache [%s]: %s", part, same)
    passes = factories["train"].passes * options.max_epoch
    if passes < _FEW_PASSES:
        logging.warning(
            "feature_cache_gb: this training makes %.2f passes over its data: caching "
            "what is heard once costs more than it saves",
            passes,
        )
    others = [p for p in root.glob("*/*.bin") if p.parent not in kept]
    if others:
        logging.info(
            "%s: %s are of other bases, data or precisions; what is no longer trained "
            "with can be removed",
            *(root, size(bytes_of(others))),
        )


def _check_frozen(model: nn.Module, gigabytes: float) -> None:
    stack = model.encoder.wav2vec2.feature_extractor
    trained = [name for name, p in stack.named_parameters() if p.requires_grad]
    if trained:
        raise RecipeError(
            f"feature_cache_gb: found {gigabytes:g} where the convolution stack trains "
            f"({len(trained)} tensors, e.g. {trained[0]}), expected 0: what it gives "
            "changes with every update. Train experts (encoder_conf.lamer), freeze it "
            f"(freeze_param: [{_EXTRACTOR}]), or leave the key out"
        )


def _audio_table(data: Sequence[Sequence[str]]) -> Path:
    path, _, kind = next(entry for entry in data if entry[1] == "speech")
    if kind != "sound":
        raise RecipeError(
            f"feature_cache_gb: {path}: found speech of type {kind}, expected sound: "
            "a file per utterance, which tells when it changed; set 0"
        )
    return Path(path)


class _Plan:
    """What the cache of one part is to hold, and where.

    Utterances are ordered by the samples that they take in a batch: those that share
    batches are there together, or left out together.
    """

    def __init__(
        self,
        part: str,
        factory: Any,
        wav_scp: Path,
        model: nn.Module,
        dtype: torch.dtype | None,
        device: str,
    ) -> None:
        self.part, self.factory, self.wav_scp = part, factory, wav_scp
        self.encoder, self.device = model.encoder, device
        self.dtype, self.stored = dtype, dtype or torch.float32
        self.lengths: Lengths = factory.lengths
        shapes = self.encoder.architecture["extractor_conv_layer_config"]
        self.channels = shapes[-1][0]
        samples = self.lengths.samples.astype(np.int64)
        padded = factory.rounded(np.arange(len(samples)))
        self.fits = samples <= padded
        usable = np.flatnonzero(self.fits & (samples >= RECEPTIVE_FIELD))
        self.order = usable[np.argsort(padded[usable], kind="stable")]
        self.frames = (samples[self.order] - RECEPTIVE_FIELD) // STRIDE + 1
        total = int(self.frames.sum())
        per_shard = max(1, min(_SHARD_FRAMES, -(-total // _FEWEST)))
        # Which shard an utterance is in does not depend on how many there is room for.
        self.shard = (np.cumsum(self.frames) - 1) // per_shard
        self.padded = padded[self.order]

    @property
    def width(self) -> int:
        """Bytes of a frame."""
        return self.channels * self.stored.itemsize

    def bytes_of(self, cache: FeatureCache | None) -> int:
        """What a cache of this part takes."""
        return 0 if cache is None else self.width * sum(map(len, cache.shards))

    def directory(self, root: Path) -> Path:
        """Named by a hash of all that decides features but what the audio holds."""
        keys = ("extractor_mode", "extractor_conv_layer_config", "normalize_waveform")
        # Prepared weights may be of another type and layout: the values count.
        stack = self.encoder.wav2vec2.feature_extractor.state_dict()
        weights = sha256_tensors({key: value.float() for key, value in stack.items()})
        samples = np.ascontiguousarray(self.lengths.samples, np.int64)
        collate = self.factory.make_collate(1)
        key = [
            _VERSION,
            weights,
            [self.encoder.architecture[key] for key in keys],
            str(self.stored),
            # So many threads sum in an order of their own.
            self.device if self.device != "cpu" else torch.get_num_threads(),
            sha256_file(self.wav_scp),
            hashlib.sha256(samples.tobytes()).hexdigest(),
            [self.part == "train" and collate.max_samples, collate.bucket],
        ]
        return root / sha256_value(key)[:16]

    def complete(self, root: Path, room: float) -> FeatureCache | None:
        """Compute what is missing, of as many utterances as ``room`` bytes hold.

        ``None`` where there is room for none.
        """
        ends = np.flatnonzero(np.diff(self.shard, append=-1)) + 1
        sizes = np.cumsum(self.frames)[ends - 1] * self.width
        ends = ends[: np.searchsorted(sizes, room, side="right")]
        count = int(ends[-1]) if len(ends) else 0
        directory = self.directory(root)
        self._say(count, directory)
        if not count:
            return None
        rows = self._rows(count, root)
        kept = np.array([bool(row[2]) for row in rows])
        blocks = np.split(np.arange(count), ends[:-1])
        parts = [[rows[n] for n in block if kept[n]] for block in blocks]
        parts = [part for part in parts if part]
        shards = Shards(directory, f"features {_VERSION}", ".bin")
        work = partial(self._compute, self.factory.dataset.dataset.part({"speech"}))
        with exclusive(directory, shared=True):
            made = shards.found(parts)
        if made is None:
            with exclusive(directory):
                shards.check_space(
                    self.width * int(self.frames[:count].sum()),
                    "features of the convolution stack",
                    "lower feature_cache_gb, or name another folder with "
                    "--feature_cache_dir (run.sh: --dumpdir)",
                )
                # In this process: workers would need the weights.
                made = shards.make(parts, work, 1, f"feature cache {self.part}")
        frames = self.frames[:count][kept]
        place = np.full(len(self.lengths), -1, np.int64)
        place[self.order[:count][kept]] = np.cumsum(frames) - frames
        maps = [self._map(directory / marker["file"]) for marker in made]
        return FeatureCache(self.lengths, place, maps)

    def _map(self, path: Path) -> Tensor:
        values = path.stat().st_size // self.stored.itemsize
        flat = torch.from_file(str(path), False, values, dtype=self.stored)
        return flat.view(-1, self.channels)

    def _say(self, count: int, directory: Path) -> None:
        """Log what is cached, what is left out, and why."""
        total, frames = len(self.order), int(self.frames.sum())
        there = int(self.frames[:count].sum())
        kind = str(self.stored).removeprefix("torch.")
        second = SAMPLE_RATE / STRIDE * self.width
        logging.info(
            f"feature cache [{self.part}]: {total} of {len(self.lengths)} utterances "
            f"({_hours(frames)}) are heard whole and take {size(frames * self.width)} "
            f"({kind}, {size(second)} per second of audio); {count} "
            f"({size(there * self.width)}) are cached in {directory}"
        )
        cropped = int((~self.fits).sum())
        if cropped:
            logging.info(
                f"feature cache [{self.part}]: {cropped} utterances are longer than "
                "max_sample_size, and cropped: computed as before"
            )
        if count < total:
            shortest = self.padded[count] / SAMPLE_RATE
            needed = frames * self.width / 1e9
            logging.warning(
                f"feature_cache_gb is full: {total - count} utterances of {self.part} "
                f"({_hours(frames - there)}), of {shortest:.1f} s and more, have no "
                f"room and are computed as before; all of {self.part} take "
                f"{needed:.3g} GB"
            )

    def _rows(self, count: int, root: Path) -> list[list]:
        """``[utt, path, print, samples, padded]``: what a shard is made of."""
        names = [self.lengths.name(int(utt)) for utt in self.order[:count]]
        table = Table(self.wav_scp, self.lengths.table)
        paths = [table[name] for name in names]
        prints = file_prints(paths, root / "seen.npy").tolist()
        samples = self.lengths.samples[self.order[:count]].tolist()
        rows = zip(names, paths, prints, samples, self.padded.tolist(), strict=False)
        none = prints.count(0)
        if none:
            logging.warning(
                f"feature cache [{self.part}]: {none} utterances have no file of their "
                f"own in {self.wav_scp}, e.g. {paths[prints.index(0)]}: not cached"
            )
        return [list(row) for row in rows]

    def _compute(
        self, speech: Any, rows: Sequence[Sequence], path: Path
    ) -> dict[str, Any]:
        """Write the features of some utterances one after the other."""
        started, waited = time.perf_counter(), 0.0

        def waveforms() -> Iterator[tuple[Tensor, Tensor]]:
            nonlocal waited
            for utt, file, _, samples, padded in rows:
                before = time.perf_counter()
                wave = np.zeros((1, padded), np.float32)
                found = np.asarray(speech[utt][1]["speech"], np.float32)
                if len(found) != samples:
                    raise RecipeError(
                        f"{file}: utterance {utt}: found {len(found)} samples, "
                        f"expected {samples}; format the audio anew"
                    )
                wave[0, :samples] = found
                waited += time.perf_counter() - before
                lengths = torch.tensor([samples], device=self.device)
                yield torch.from_numpy(wave).to(self.device), lengths

        every = self.encoder.features(waveforms(), self.dtype)
        with open(path, "wb") as handle:
            for (_, _, _, samples, _), features in zip(rows, every, strict=True):
                real = features[0, : num_frames(samples)].cpu().contiguous()
                handle.write(real.view(torch.uint8).numpy().tobytes())
        audio = sum(row[3] for row in rows) / SAMPLE_RATE
        return {"audio": audio, "forward": time.perf_counter() - started - waited}


def _compared(
    model: nn.Module, factory: Any, dtype: torch.dtype | None, device: str
) -> str:
    """Compute a batch that the cache serves as training would without, and compare.

    Raises:
        RecipeError: The values differ by more than rounding.
    """
    plan = factory.plan(1)
    for iteration in range(len(plan)):
        for row in factory.split(plan.numbers(iteration)):
            own = row[factory.rank]
            stored = factory.is_stored(own, factory.rounded(own).max(initial=0))
            if stored.any():
                return _compare(model, factory, own, stored, dtype, device)
    return "no batch of the first epoch has an utterance that is cached"


def _compare(
    model: nn.Module,
    factory: Any,
    utts: NDArray,
    stored: NDArray[np.bool_],
    dtype: torch.dtype | None,
    device: str,
) -> str:
    names = [factory.lengths.name(utt) for utt in utts.tolist()]
    _, batch = factory.load(names)
    given = batch["speech"].to(device), batch["speech_lengths"].to(device)
    features = next(model.encoder.features([given], dtype)).cpu().float()
    worst = 0.0
    for row in np.flatnonzero(stored):
        there = factory.dataset.cache.read(names[row])["features"]
        found, limit = features[row, : len(there)], _ROUNDING[there.dtype]
        gap = (found - there.float()).abs().max() / found.abs().max().clamp(min=1e-9)
        worst = max(worst, float(gap.nan_to_num(torch.inf)))
        if worst > limit:
            raise RecipeError(
                f"feature_cache_gb: utterance {names[row]}: what is stored differs "
                f"from what the network gives by {worst:.1e} of the largest value, "
                f"expected at most {limit:g}; remove the folder that the log names, "
                "and it is computed anew"
            )
    count = f"{int(stored.sum())} utterances of a batch are"
    if not worst:
        return f"{count} to the bit what the network gives without a cache"
    return (
        f"{count} what the network gives without a cache to {worst:.1e} of the largest "
        "value: sums over a batch have another order than over an utterance"
    )


def _hours(frames: int) -> str:
    return f"{frames * STRIDE / SAMPLE_RATE / 3600:.2f} h"
