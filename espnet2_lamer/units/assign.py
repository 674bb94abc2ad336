"""Labels of all speech: teacher forward and nearest centroid in one pass."""

import heapq
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_lamer.data.speech import audio_rows, read_wav_scp
from espnet2_lamer.fileio.atomic import atomic_path, write_json, write_text
from espnet2_lamer.fileio.hashing import sha256_file, sha256_value
from espnet2_lamer.fileio.prints import save_array
from espnet2_lamer.fileio.shards import Shards, shard_size, split
from espnet2_lamer.units.codebook import Codebook, load_codebook
from espnet2_lamer.units.extractor import Extractor
from espnet2_lamer.units.labels import read_sidecar, sidecar_path
from espnet2_lamer.units.stored import StoredFeatures, stored_features
from espnet2_lamer.units.teacher import Teacher

# A second of speech has more units.
_MANY_FRAMES = 49
_FEW_UNITS = 2


def kept_path(text_km: Path) -> Path:
    """Labels of a data directory that was replaced, for those still good."""
    return text_km.with_name("kept_" + text_km.name)


def assign_units(
    teacher: Teacher,
    codebook: str | Path,
    wav_scp: str | Path,
    output: str | Path,
    nj: int = 1,
    shard_utts: int | None = None,
    features: str | Path | None = None,
) -> dict[str, Any]:
    """Write ``utt u1 u2 ...`` per utterance, sorted, and the sidecar beside it.

    Features are never stored. Those that are in ``features``, a directory of
    ``dump_features``, of the same teacher, device and audio, are read instead of
    computed; labels are the same, and the log says of how many utterances. A run that
    was killed goes on from the shards in ``<output>.shards``; bytes do not depend on
    ``nj``, nor on whether the shards were made here or by a cluster
    (:func:`espnet2_lamer.parallel.workers`). Where the same teacher and codebook
    labelled the same audio before, its labels are kept: those of ``output``, or of
    ``kept_<output>`` beside it. Utterances whose units collapse are listed in
    ``<output>.collapsed.tsv``.

    A shard has ``shard_utts`` utterances, by default 200, fewer of a small corpus.
    Returns the sidecar.

    Raises:
        RecipeError: Teacher and codebook do not belong together, or audio is missing,
            broken or too short.
    """
    book = load_codebook(codebook)
    book.check_teacher(teacher.identity, teacher.dim, str(codebook))
    scp = read_wav_scp(wav_scp)
    rows = audio_rows(scp, scp)
    output = Path(output)
    made_by = sha256_value([teacher.identity, teacher.device, book.sha256])
    plan = sha256_value([made_by, rows])
    shards = Shards(output.with_name(output.name + ".shards"), made_by, ".txt")
    if finished := _finished(output, plan):
        logging.info("%s: done already", output)
        shutil.rmtree(shards.directory, ignore_errors=True)
        return finished
    before = output if output.is_file() else kept_path(output)
    kept = _kept_labels(before, made_by, rows)
    todo = [row for row in rows if row[0] not in kept]
    if kept:
        text = "%s: the labels of %d of %d utterances are kept"
        logging.info(text, output, len(kept), len(rows))
    shard_utts = shard_utts or shard_size(len(todo), 200)
    stored = None
    if features is not None and todo:
        stored = stored_features(features, teacher, rows)
        number = sum(row[0] in stored for row in todo) if stored else 0
        text = "%s: features of %d of %d utterances are in %s, the teacher gives others"
        logging.info(text, output, number, len(todo), features)
    work = partial(_label_shard, teacher, book, stored)
    markers = shards.make(split(todo, shard_utts), work, nj, "units")
    frames, collapsed = 0, []
    new = _labelled(shards.directory / marker["file"] for marker in markers)
    old = (pair for pair in _labelled([before] if kept else []) if pair[0] in kept)
    with atomic_path(output) as temporary, open(temporary, "wb") as merged:
        for utt, line in heapq.merge(new, old, key=itemgetter(1)):
            merged.write(line)
            _, *units = line.split()
            frames += len(units)
            if len(units) >= _MANY_FRAMES and len(different := {*units}) <= _FEW_UNITS:
                there = b" ".join(sorted(different, key=int)).decode()
                collapsed.append((utt, str(len(units)), there, scp[utt]))
    _list_collapsed(output, collapsed)
    sidecar = {
        "codebook_sha256": book.sha256,
        "teacher": teacher.identity["source"],
        "teacher_sha256": teacher.identity["sha256"],
        "layer": teacher.identity["layer"],
        "K": len(book.centroids),
        "utterances": len(rows),
        "frames": frames,
        "sha256": sha256_file(output),
    }
    write_json(sidecar_path(output), sidecar)
    save_array(_prints_path(output), np.array([row[2] for row in rows], np.uint64))
    marker = {"plan": plan, "sha256": sidecar["sha256"], "made_by": made_by}
    write_json(_marker_path(output), marker)
    for path in output.parent.glob(f"{kept_path(output).name}*"):
        path.unlink()
    # Workers that a killed run left behind may still write there.
    shutil.rmtree(shards.directory, ignore_errors=True)
    return sidecar


def _marker_path(text_km: Path) -> Path:
    return text_km.with_name(text_km.name + ".done.json")


def _prints_path(text_km: Path) -> Path:
    """What the audio of each line held, in the order of the lines."""
    return text_km.with_name(text_km.name + ".prints.npy")


def _labelled(files: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """Yield utterance and line; a space sorts before whatever goes on an id."""
    for path in files:
        with open(path, "rb") as handle:
            for line in handle:
                yield line.partition(b" ")[0].decode(), line


def _kept_labels(text_km: Path, made_by: str, rows: Sequence) -> set[str]:
    """Utterances that have labels of the same audio, teacher and codebook."""
    try:
        marker = json.loads(_marker_path(text_km).read_text(encoding="utf-8"))
        if marker["made_by"] != made_by or sha256_file(text_km) != marker["sha256"]:
            return set()
        prints = np.load(_prints_path(text_km)).tolist()
        utts = (utt for utt, _ in _labelled([text_km]))
        before = dict(zip(utts, prints, strict=True))
    except (OSError, ValueError, KeyError):
        return set()
    return {utt for utt, _, number in rows if before.get(utt) == number}


def _finished(text_km: Path, plan: str) -> dict[str, Any] | None:
    """The sidecar of labels that are complete, and made from the same."""
    try:
        sidecar = read_sidecar(text_km)
        marker = json.loads(_marker_path(text_km).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # RecipeError is a ValueError
        return None
    same = (marker.get("plan"), marker.get("sha256")) == (plan, sidecar["sha256"])
    return sidecar if same else None


def _label_shard(
    teacher: Teacher,
    codebook: Codebook,
    stored: StoredFeatures | None,
    rows: Sequence,
    path: Path,
) -> dict[str, Any]:
    frames = 0
    extract = Extractor(teacher, stored)
    with open(path, "w", encoding="utf-8") as handle:
        for (utt, _, _), features in extract(rows):
            units = codebook.assign(features)
            handle.write(f"{utt} {' '.join(map(str, units.tolist()))}\n")
            frames += len(units)
    return {"utterances": len(rows), "frames": frames, **extract.facts()}


def _list_collapsed(text_km: Path, rows: Sequence[Sequence]) -> None:
    """List utterances with a unit or two for a second and more, which is no speech."""
    path = text_km.with_name(text_km.name + ".collapsed.tsv")
    path.unlink(missing_ok=True)
    if rows:
        lines = ("\t".join(row) + "\n" for row in rows)
        write_text(path, "utt_id\tframes\tunits\tpath\n" + "".join(lines))
        text = (
            "%d utterances have at most %d units in a second or more, see %s; listen "
        )
        text += "to them: music, noise or a constant sound teach nothing"
        logging.warning(text, len(rows), _FEW_UNITS, path)
