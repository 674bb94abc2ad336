"""Features that were stored for k-means, used again for labels."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.foreign import clear_errors
from espnet2_lamer.fileio.hashing import sha256_value
from espnet2_lamer.fileio.shards import is_whole, plan_of
from espnet2_lamer.units.teacher import Teacher


@dataclass(frozen=True)
class StoredFeatures:
    """Which shards of a feature directory hold what the teacher would give now.

    It is pickled as names: a worker reads the index once.
    """

    directory: str
    plan: str  # of the store, as its index has it
    files: frozenset[str]  # shards of unchanged audio

    def __contains__(self, utt: str) -> bool:
        """Whether features of the utterance are there."""
        return utt in _places(self.directory, self.plan, self.files)

    def frames(self, utt: str) -> np.ndarray:
        """Features ``[T, D]`` float32 of an utterance that is there.

        Raises:
            RecipeError: A shard, or the whole store, was changed meanwhile.
        """
        places = _places(self.directory, self.plan, self.files)
        number, offset, length = places[utt]
        return _frames(self.directory, self.plan, number)[offset : offset + length]


def made_by(teacher: Teacher) -> str:
    """Hash of what determines features beside the audio."""
    return sha256_value([teacher.identity, teacher.device])


def stored_features(
    directory: str | Path, teacher: Teacher, rows: Sequence[Sequence]
) -> StoredFeatures | None:
    """Look for features of this teacher and audio in a directory of ``dump_features``.

    Args:
        directory: Of the store. Where none was finished, or one of another teacher,
            layer or device, that is logged.
        teacher: Whose features are wanted.
        rows: ``[utt, path, print]`` of the audio now. A shard that has an utterance of
            another print or path, or one that is not among them, is left out whole:
            the hash of its plan, which tells, is of all its rows.

    Returns:
        What can be used; None where nothing can.

    Raises:
        RecipeError: The index is damaged.
    """
    path = Path(directory) / "index.json"
    if not path.is_file():
        logging.info("%s: no finished features there, none are used again", directory)
        return None
    index = _read(str(path), path.stat().st_mtime_ns)
    if index.get("teacher") != teacher.identity:
        text = "%s: features of another teacher or layer, not used again"
        logging.info(text, directory)
        return None
    audio = {utt: [utt, path, number] for utt, path, number in rows}
    maker, good = made_by(teacher), set()
    for shard in index["shards"]:
        part = [[*audio.get(utt, ()), lang] for utt, lang, _, _ in shard["utts"]]
        if shard.get("plan") == plan_of(maker, part):
            good.add(shard["file"])
    if len(good) < len(index["shards"]):
        text = "%s: %d of %d shards are of other audio or another device, not used"
        left = len(index["shards"]) - len(good)
        logging.info(text, directory, left, len(index["shards"]))
    found = StoredFeatures(str(directory), index.get("plan", ""), frozenset(good))
    return found if good else None


@lru_cache(maxsize=1)
def _read(path: str, changed: int) -> dict:
    """Read an index, once while it stays as it is."""
    with clear_errors(path):
        index = json.loads(Path(path).read_text(encoding="utf-8"))
        # What is used below.
        [(s["file"], s["frames"], s["sha256"], s["utts"]) for s in index["shards"]]
        return index


def _index(directory: str, plan: str) -> dict:
    path = Path(directory) / "index.json"
    index = _read(str(path), path.stat().st_mtime_ns)
    if index.get("plan", "") != plan:
        raise RecipeError(
            f"{path}: the features were changed while labels are made from them; run "
            "the same command again"
        )
    return index


@lru_cache(maxsize=1)
def _places(
    directory: str, plan: str, files: frozenset[str]
) -> dict[str, tuple[int, int, int]]:
    """Number of its shard, first frame and length of each utterance."""
    return {
        utt: (number, offset, length)
        for number, shard in enumerate(_index(directory, plan)["shards"])
        if shard["file"] in files
        for utt, _, offset, length in shard["utts"]
    }


@lru_cache(maxsize=2)
def _frames(directory: str, plan: str, number: int) -> np.ndarray:
    """Map the frames ``[n, D]`` of a shard, whose bytes are checked first."""
    index = _index(directory, plan)
    shard = index["shards"][number]
    path = Path(directory) / shard["file"]
    if not is_whole(Path(directory), shard):
        raise RecipeError(
            f"{path}: the features are not those that its index names (sha256 "
            f"{shard['sha256']}); run dump_features (stage 3) again, or leave out "
            "--features"
        )
    shape = (shard["frames"], index["dim"])
    return np.asarray(np.memmap(path, "<f4", "r", shape=shape))
