"""Teacher features: extracted shard by shard, dumped, read back in bounded memory."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_lamer.constants import SAMPLE_RATE, num_frames
from espnet2_lamer.data.speech import (
    audio_rows,
    count_samples,
    read_wav_scp,
)
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.fileio.foreign import clear_errors
from espnet2_lamer.fileio.hashing import sha256_file, sha256_value
from espnet2_lamer.fileio.shards import Shards, is_whole, shard_size, split
from espnet2_lamer.units.extractor import Extractor
from espnet2_lamer.units.stored import made_by
from espnet2_lamer.units.teacher import Teacher

# ISO 639-2: a language that is not known.
UNKNOWN_LANGUAGE = "und"
# Frames read together: in a large store 2 s, long enough for the disk, short enough to
# mix speakers; in a small one fewer, so that a block is still a random sample.
LONGEST_CHUNK = 100
CHUNKS = 100_000
# Squares of larger values are infinite in float32.
_ABSURD = 1e19


def sample_utterances(
    wav_scp: Mapping[str, str],
    utt2lang: Mapping[str, str],
    hours_per_lang: float,
    seed: int,
) -> list[str]:
    """Draw ids of each language, uniformly, until ``hours_per_lang`` is met.

    A language's draw depends on its own utterances and the seed only. A language with
    less speech than asked for is taken whole. The order is that of ``wav_scp``.
    """
    by_lang: dict[str, list[str]] = {}
    for utt in wav_scp:
        by_lang.setdefault(utt2lang[utt], []).append(utt)
    wanted = hours_per_lang * 3600 * SAMPLE_RATE
    chosen: set[str] = set()
    for lang, utts in sorted(by_lang.items()):
        total = 0
        generator = np.random.default_rng([seed, *lang.encode()])
        for utt in (utts[index] for index in generator.permutation(len(utts))):
            if total >= wanted:
                break
            total += count_samples(utt, wav_scp[utt])
            chosen.add(utt)
        logging.info("%s: %.2f h sampled", lang, total / SAMPLE_RATE / 3600)
    return [utt for utt in wav_scp if utt in chosen]


def feature_bytes(dim: int, frames: int) -> int:
    """Return what features ``[frames, dim]`` take on disk: float32."""
    return 4 * dim * frames


def dump_features(
    teacher: Teacher,
    wav_scp: str | Path,
    output: str | Path,
    utt2lang: str | Path | None = None,
    hours_per_lang: float | None = None,
    seed: int = 0,
    shard_utts: int | None = None,
    nj: int = 1,
) -> Path:
    """Write teacher features of (a sample of) the utterances as float32 shards.

    A run that was killed goes on with the shards that are not done yet; the directory
    is complete when ``index.json``, whose path is returned, is there. Without
    ``utt2lang`` all speech is one language; ``hours_per_lang`` of each are drawn by
    ``seed``, or all. A shard has ``shard_utts`` utterances, by default 100, fewer of a
    small corpus; for ``nj`` see :func:`espnet2_lamer.parallel.workers`.

    Raises:
        RecipeError: Audio is missing, broken or too short, or has no language.
    """
    scp = read_wav_scp(wav_scp)
    langs = dict.fromkeys(scp, UNKNOWN_LANGUAGE)
    if utt2lang is not None:
        table = read_table(utt2lang)
        missing = [utt for utt in scp if utt not in table]
        if missing:
            raise RecipeError(
                f"{utt2lang}: no language for {len(missing)} utterances of {wav_scp}, "
                f"first {missing[0]!r}; add them"
            )
        langs = {utt: table[utt] for utt in scp}
    utts = list(scp)
    if hours_per_lang is not None:
        utts = sample_utterances(scp, langs, hours_per_lang, seed)
    # Utterance, path, print, language.
    rows = [[*row, langs[row[0]]] for row in audio_rows(utts, scp)]
    shard_utts = shard_utts or shard_size(len(rows), 100)
    maker = made_by(teacher)
    plan = sha256_value([maker, shard_utts, rows])
    shards = Shards(Path(output), maker, ".bin")
    index_path = shards.directory / "index.json"
    if index_path.is_file():
        index = _read_index(index_path)
        whole = (is_whole(shards.directory, shard) for shard in index["shards"])
        if index.get("plan") == plan and all(whole):
            logging.info("%s: done already", output)
            return index_path
        shards.remember(index["shards"])
    frames = sum(num_frames(count_samples(utt, scp[utt])) for utt in utts)
    shards.check_space(
        feature_bytes(teacher.dim, frames),
        "teacher features",
        "lower --kmeans_hours, or name another folder with --dumpdir (--output)",
    )
    index_path.unlink(missing_ok=True)
    work = partial(_dump_shard, teacher)
    markers = shards.make(split(rows, shard_utts), work, nj, "features")
    listed = ("plan", "file", "frames", "sha256", "utts")
    index = {
        "dim": teacher.dim,
        "dtype": "float32",
        "frames": sum(marker["frames"] for marker in markers),
        "teacher": teacher.identity,
        "plan": plan,
        "shards": [{key: marker[key] for key in listed} for marker in markers],
    }
    write_json(index_path, index)
    shards.clean(keep={"index.json", *(marker["file"] for marker in markers)})
    return index_path


def _dump_shard(teacher: Teacher, rows: Sequence, path: Path) -> dict[str, Any]:
    utts, offset = [], 0
    extract = Extractor(teacher)
    with open(path, "wb") as handle:
        for (utt, _, _, lang), features in extract(rows):
            handle.write(features.cpu().numpy().astype("<f4", copy=False).tobytes())
            utts.append([utt, lang, offset, len(features)])
            offset += len(features)
    return {"frames": offset, "utts": utts, **extract.facts()}


def _read_index(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"{path}: not a readable feature index ({error}); run dump_features"
        ) from error


class FeatureStore:
    """Frames of a feature directory, read in blocks without loading it whole."""

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        path = self.directory / "index.json"
        with clear_errors(path):
            self._read(path, _read_index(path))

    def _read(self, index_path: Path, index: dict[str, Any]) -> None:
        if index.get("dtype") != "float32":
            raise RecipeError(
                f"{index_path}: dtype {index.get('dtype')!r}, expected 'float32'; run "
                "dump_features"
            )
        self.dim: int = index["dim"]
        #: Identity of the teacher that made them.
        self.teacher: dict[str, Any] = index.get("teacher", {})
        self._index = index["shards"]
        self._shards = [(shard["file"], shard["frames"]) for shard in self._index]
        self._starts = np.cumsum([0] + [frames for _, frames in self._shards])
        self.frames = int(self._starts[-1])
        for file, frames in dict(self._shards).items():
            if Path(file).name != file:
                raise RecipeError(
                    f"{index_path}: file: found {file!r}, expected the name of a shard "
                    "in the same folder"
                )
            path, expected = self.directory / file, frames * self.dim * 4
            found = path.stat().st_size if path.is_file() else 0
            if found != expected:
                raise RecipeError(
                    f"{path}: {found} bytes, expected {expected} ({frames} frames of "
                    f"{self.dim} float32); run dump_features again"
                )
        # Few open maps at a time: a corpus has more shards than file handles.
        self._map = lru_cache(maxsize=64)(self._open)

    @property
    def sha256(self) -> str:
        """Hash of the index, hence of all features."""
        return sha256_file(self.directory / "index.json")

    def _open(self, file: str, frames: int) -> np.ndarray:
        shape = (frames, self.dim)
        # A plain array: indexing is many times faster than that of the subclass.
        return np.asarray(np.memmap(self.directory / file, "<f4", "r", shape=shape))

    def take(self, frames: np.ndarray) -> np.ndarray:
        """Copy single frames ``[n, D]`` by their numbers, in increasing order."""
        frames = np.sort(frames)
        # Where each shard's frames begin and end in the sorted numbers.
        edges = np.searchsorted(frames, self._starts)
        rows = np.empty((len(frames), self.dim), np.float32)
        for shard in np.flatnonzero(edges[1:] > edges[:-1]):
            part = slice(edges[shard], edges[shard + 1])
            inside = frames[part] - self._starts[shard]
            rows[part] = self._map(*self._shards[shard])[inside]
        # One number tells, in a fraction of the time of a look at each.
        if not np.isfinite(np.vdot(rows, rows)):
            self._refuse(frames[~(np.abs(rows) < _ABSURD).all(1)])
        return rows

    def _refuse(self, frames: np.ndarray) -> None:
        """Name the utterance of the first of these frames."""
        if not len(frames):  # many large ones, and no single one that is absurd
            return
        shard = int(np.searchsorted(self._starts, frames[0], "right")) - 1
        entry = self._index[shard]
        inside = frames[0] - self._starts[shard]
        utt = next(u for u, _, first, n in entry["utts"] if first <= inside < first + n)
        raise RecipeError(
            f"{self.directory / entry['file']}: features of utterance {utt!r} are not "
            "finite, or absurdly large; take it out of wav.scp, or run dump_features "
            "again with another teacher or layer"
        )

    def blocks(
        self, size: int, seed: int, epoch: int = 0, first: int = 0
    ) -> Iterator[np.ndarray]:
        """Yield blocks ``[about size, D]`` that cover the store once, shuffled.

        A block gathers short runs of frames from all over the store, so that memory is
        one block and the disk still reads runs. Those before ``first`` are not read.
        """
        runs = self.chunks()
        order = np.random.default_rng([seed, epoch]).permutation(len(runs))
        parts = split(runs[order], self._runs_of(size))
        for part in parts[first:]:
            yield self.take(np.concatenate([np.arange(*run) for run in part]))

    def number_of_blocks(self, size: int) -> int:
        """How many blocks :meth:`blocks` yields."""
        return -(-len(self.chunks()) // self._runs_of(size))

    def _runs_of(self, size: int) -> int:
        """Runs of frames in a block."""
        return max(1, size // self.chunk)

    @property
    def chunk(self) -> int:
        """Length in frames of the runs that are read together."""
        return max(1, min(LONGEST_CHUNK, self.frames // CHUNKS))

    def chunks(self) -> np.ndarray:
        """``[C, 2]`` first frame and end of each run, none across shards."""
        rows = []
        for first, end in zip(self._starts[:-1], self._starts[1:], strict=True):
            start = np.arange(first, end, self.chunk)
            rows.append(np.stack([start, np.minimum(start + self.chunk, end)], axis=1))
        return np.concatenate(rows)
