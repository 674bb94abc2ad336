"""Unit labels: teacher forward and nearest centroid in one pass, checks, quality."""

import heapq
import json
import logging
import math
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_lamer.constants import num_frames
from espnet2_lamer.data.speech import audio_rows, read_wav_scp
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path, write_json, write_text
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.fileio.hashing import sha256_file, sha256_value
from espnet2_lamer.fileio.prints import save_array
from espnet2_lamer.fileio.text import text_lines
from espnet2_lamer.metrics.probe import frame_phones
from espnet2_lamer.metrics.similarity import entropy, phone_scores
from espnet2_lamer.train.labels import parse_units
from espnet2_lamer.train.utterances import Lengths
from espnet2_lamer.units.codebook import Codebook, load_codebook
from espnet2_lamer.units.extractor import Extractor
from espnet2_lamer.units.shards import Shards, shard_size, split
from espnet2_lamer.units.stored import StoredFeatures, stored_features
from espnet2_lamer.units.teacher import Teacher

# A second of speech has more units.
_MANY_FRAMES = 49
_FEW_UNITS = 2
# Frames that no phone covers.
SILENCE = "sil"
# Utterances that are looked up together.
_BLOCK = 500


def kept_path(text_km: Path) -> Path:
    """Labels of a data directory that was replaced, for those still good."""
    return text_km.with_name("kept_" + text_km.name)


def sidecar_path(text_km: str | Path) -> Path:
    """``text.km.json`` beside ``text.km``."""
    text_km = Path(text_km)
    return text_km.with_name(text_km.name + ".json")


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


def write_token_list(path: str | Path, n_clusters: int) -> None:
    """Write ``0`` to ``K-1`` in order, ``<unk>``, ``<sos/eos>``: line number = unit."""
    tokens = [*map(str, range(n_clusters)), "<unk>", "<sos/eos>"]
    write_text(path, "".join(token + "\n" for token in tokens))


def check_labels(
    text_km: str | Path,
    n_clusters: int,
    utt2num_samples: str | Path | Mapping[str, int],
    codebook_sha256: str | None = None,
) -> dict[str, Any]:
    """Check that labels fit the audio, the number of classes and their sidecar.

    Only utterances of ``utt2num_samples`` need labels; ``codebook_sha256`` is the
    codebook that they must come from, if given. Returns the sidecar.

    Raises:
        RecipeError: The sidecar is missing or belongs to another file, K or the
            codebook differs, an utterance has no labels, a unit is not in ``0 .. K-1``,
            or the number of labels is not the number of frames.
    """
    text_km = Path(text_km)
    sidecar = read_sidecar(text_km)
    if sidecar["K"] != n_clusters:
        raise RecipeError(
            f"{text_km}: K is {sidecar['K']}, the model has {n_clusters} classes; "
            "set --n_clusters alike or assign units again"
        )
    if codebook_sha256 not in (None, sidecar.get("codebook_sha256")):
        raise RecipeError(
            f"{sidecar_path(text_km)}: codebook_sha256 is "
            f"{sidecar.get('codebook_sha256')}, expected {codebook_sha256}: the labels "
            "come from another codebook, and its units mean something else; assign "
            "units again"
        )
    if isinstance(utt2num_samples, Mapping):
        lengths = Lengths.of(utt2num_samples)
    else:
        lengths = Lengths.read(utt2num_samples)
    there = np.zeros(len(lengths), bool)
    found = iterate_labels(text_km, n_clusters)
    while block := list(islice(found, _BLOCK)):
        numbers = lengths.numbers([utt.encode() for utt, _ in block]).tolist()
        for number, (utt, units) in zip(numbers, block, strict=True):
            if number < 0:
                continue
            there[number] = True
            samples = int(lengths.samples[number])
            if len(units) != num_frames(samples):
                raise RecipeError(
                    f"{text_km}: utterance {utt!r} has {len(units)} labels, expected "
                    f"{num_frames(samples)} for {samples} samples; assign units again"
                )
    if not there.all():
        missing = np.flatnonzero(~there)
        raise RecipeError(
            f"{text_km}: no labels for {len(missing)} of {len(lengths)} utterances, "
            f"first {lengths.name(missing[0])!r}; assign units to the same wav.scp"
        )
    return sidecar


def iterate_labels(
    text_km: str | Path, n_clusters: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each utterance and its units ``[T]``, one line in memory at a time.

    Raises RecipeError where a line breaks what :func:`check_labels` asks of units.
    """
    if not Path(text_km).is_file():
        raise RecipeError(f"{text_km}: file not found; run assign_units")
    digits = np.array([len(str(unit)) for unit in range(n_clusters)])
    last, seen = "", None
    for number, line in text_lines(text_km):
        utt, _, row = line.strip().partition(" ")
        if seen is None and utt <= last:
            # Only a table that is not sorted needs to be remembered.
            lines = islice(text_lines(text_km), number - 1)
            seen = {line.split()[0] for _, line in lines}
        if not row or (seen and utt in seen):
            raise RecipeError(
                f"{text_km}:{number}: utterance {utt!r} "
                f"{'occurs twice' if row else 'has no units'}; assign units again"
            )
        if seen is not None:
            seen.add(utt)
        last = utt
        units = parse_units(row.encode(), n_clusters)
        # Units as we write them: no sign, no zero in front, one space between.
        if units is None or len(row) != len(units) - 1 + digits[units].sum():
            valid = set(map(str, range(n_clusters)))
            wrong = sorted({*row.split(" ")} - valid)[0]
            raise RecipeError(
                f"{text_km}:{number}: utterance {utt!r} has unit {wrong!r}, "
                f"expected 0 to {n_clusters - 1}; assign units again"
            )
        yield utt, units


def read_sidecar(text_km: str | Path) -> dict[str, Any]:
    """Read ``text.km.json``, which must hold the hash of this ``text.km``."""
    text_km = Path(text_km)
    path = sidecar_path(text_km)
    for file in (text_km, path):
        if not file.is_file():
            raise RecipeError(f"{file}: file not found; run assign_units")
    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        expected, _ = sidecar["sha256"], sidecar["K"]
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"{path}: not a label sidecar ({error!r}); run assign_units again"
        ) from error
    found = sha256_file(text_km)
    if found != expected:
        raise RecipeError(
            f"{text_km}: sha256 {found}, but {path.name} was written for {expected}; "
            "the labels were changed, run assign_units again"
        )
    return sidecar


def label_quality(
    text_km: str | Path,
    n_clusters: int,
    phones_ctm: str | Path | None = None,
    utt2lang: str | Path | None = None,
) -> dict[str, Any]:
    """Measure the labels of a ``text.km``.

    ``phones_ctm`` is read by :func:`~espnet2_lamer.metrics.probe.frame_phones`; an
    utterance without phones is not counted.

    Returns:
        ``utterances``, ``frames``, ``used`` and ``dead`` classes, ``entropy`` of units
        in nats and its ``perplexity``, ``bigram_perplexity`` (of a frame's unit given
        the last one's, counted on the same labels), ``run_length`` in frames; with
        phones also :func:`phone_scores`, with languages ``language_purity`` (frames
        whose language is the likeliest of their unit) beside ``language_majority``.

    Raises:
        RecipeError: A file is missing or malformed, or no utterance has phones.
    """
    unigrams = np.zeros(n_clusters, dtype=np.int64)
    bigrams = np.zeros((n_clusters, n_clusters), dtype=np.int64)
    by_phone: dict[str, np.ndarray] = defaultdict(lambda: np.zeros_like(unigrams))
    by_lang: dict[str, np.ndarray] = defaultdict(lambda: np.zeros_like(unigrams))
    phones = frame_phones(phones_ctm) if phones_ctm else {}
    langs = read_table(utt2lang) if utt2lang else {}
    utterances = runs = with_phones = 0
    for utt, units in iterate_labels(text_km, n_clusters):
        counts = np.bincount(units, minlength=n_clusters)
        unigrams += counts
        np.add.at(bigrams, (units[:-1], units[1:]), 1)
        utterances += 1
        runs += 1 + int((units[1:] != units[:-1]).sum())
        if utt in phones:
            with_phones += 1
            spoken = [phone or SILENCE for phone in phones[utt][: len(units)]]
            spoken += [SILENCE] * (len(units) - len(spoken))
            names, which = np.unique(spoken, return_inverse=True)
            for number, phone in enumerate(names.tolist()):
                np.add.at(by_phone[phone], units[which == number], 1)
        if langs:
            if utt not in langs:
                raise RecipeError(f"{utt2lang}: no language for {utt!r}; add it")
            by_lang[langs[utt]] += counts
    if not utterances:
        raise RecipeError(f"{text_km}: no labels; run assign_units")

    frames = int(unigrams.sum())
    report: dict[str, Any] = {
        "utterances": utterances,
        "frames": frames,
        "K": n_clusters,
        "used": int((unigrams > 0).sum()),
        "dead": int((unigrams == 0).sum()),
        "entropy": entropy(unigrams),
        "perplexity": math.exp(entropy(unigrams)),
        "run_length": frames / runs,
    }
    if bigrams.any():
        conditional = entropy(bigrams) - entropy(bigrams.sum(1))
        report["bigram_perplexity"] = math.exp(conditional)
    if phones_ctm:
        if not with_phones:
            raise RecipeError(
                f"{phones_ctm}: no utterance of {text_km} is in it; give the phones "
                "of the same data"
            )
        report["utterances_with_phones"] = with_phones
        report |= phone_scores(np.stack([by_phone[p] for p in sorted(by_phone)]))
    if langs:
        table = np.stack([by_lang[lang] for lang in sorted(by_lang)])  # [langs, K]
        report["language_purity"] = float(table.max(0).sum() / frames)
        report["language_majority"] = float(table.sum(1).max() / frames)
    return report


def write_quality(report: dict[str, Any], output: str | Path) -> None:
    """Write the report as JSON to ``output`` and as a table beside it (``.md``)."""
    write_json(output, report)
    lines = ["| measure | value |", "|---|---|"]
    for key, value in report.items():
        shown = f"{value:.4f}" if isinstance(value, float) else value
        lines.append(f"| {key} | {shown} |")
    write_text(Path(output).with_suffix(".md"), "\n".join(lines) + "\n")


def figures(report: dict[str, Any]) -> str:
    """Say a report's numbers in one line."""
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in report.items()
    )
