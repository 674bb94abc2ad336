"""Recordings of a corpus become utterances, before it is divided into sets."""

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from espnet2_lamer.data.audio import SkippedAudio, durations, listed, over_files
from espnet2_lamer.data.segmentation import (
    VERSION,
    Cuts,
    Segment,
    cut_at_pauses,
    hear,
    segment_id,
)
from espnet2_lamer.data.segments import SEGMENTS, Times, read_segments
from espnet2_lamer.data.sets import Utterance, read_if_there
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_json, write_text
from espnet2_lamer.fileio.hashing import sha256_value
from espnet2_lamer.fileio.prints import file_prints

#: Ways to make utterances of recordings.
WAYS = ("none", "vad", "file")
#: What is written beside the sets: hours per language, and a line per recording.
REPORT, LISTING = "segmentation.json", "recordings.tsv"
_KEPT = "segmentation"
_COLUMNS = (
    "recording lang seconds segments speech_s silence_s music_or_noise_s too_short_s "
    "forced_cuts path"
).split()
_COUNTS = "recordings unusable without_speech segments forced_cuts texts_lost".split()
_HOURS = "hours speech_hours silence_hours music_or_noise_hours too_short_hours".split()


@dataclass(frozen=True)
class Segmenting:
    """How recordings become utterances: the options ``--segment`` and what it needs."""

    way: str = "none"  # one of WAYS
    segments: str = ""  # Kaldi's table for "file"; empty: those beside the manifest
    min_duration: float = 2.0
    max_duration: float = 30.0
    max_bad_audio: float = 1.0
    nj: int = 1


def segment_rows(
    rows: list[Utterance], manifest: Path, output_dir: Path, how: Segmenting
) -> list[Utterance]:
    """Return rows no longer than ``how.max_duration`` instead of recordings.

    ``vad`` cuts what is longer at pauses and leaves the rest as it is; ``file`` takes
    the parts that Kaldi's ``segments`` name. Utterances are called by recording and
    times, ``radio-0001234-0005678`` in hundredths of a second, and share the
    recording's speaker, which is the recording itself where none is known. What was
    found of a recording is kept in ``<output_dir>/segmentation`` until its content, or
    how it is cut, changes. Writes :data:`REPORT` and :data:`LISTING`.

    Raises:
        RecipeError: A recording cannot be used, ``segments`` is missing or wrong, or no
            speech is found.
    """
    for name in (REPORT, LISTING):
        (output_dir / name).unlink(missing_ok=True)
    if how.way == "none":
        return rows
    if how.way not in WAYS:
        raise RecipeError(
            f"--segment: found {how.way!r}, expected one of {' '.join(WAYS)}"
        )
    segment = _by_activity if how.way == "vad" else _by_table
    return segment(rows, manifest, output_dir, how)


def segment_tables(manifest: str | Path, given: str = "") -> list[Path]:
    """Return the ``segments`` of a manifest: the given one, or those beside it."""
    if given:
        return [Path(given)]
    manifest = Path(manifest)
    if not manifest.is_dir():
        return [p for p in [manifest.parent / SEGMENTS] if p.is_file()]
    folders = sorted(p for p in manifest.iterdir() if p.is_dir())
    return [p for f in (manifest, *folders) if (p := f / SEGMENTS).is_file()]


def _by_activity(
    rows: list[Utterance], manifest: Path, output_dir: Path, how: Segmenting
) -> list[Utterance]:
    seconds = {
        utt: length
        for utt, length, problem in durations(
            {row.utt_id: row.audio for row in rows}, how.nj
        )
        if not problem  # stage 2 says what is wrong
    }
    long = [row for row in rows if seconds.get(row.utt_id, 0.0) > how.max_duration]
    folder = output_dir / _KEPT
    limits = how.min_duration, how.max_duration
    prints = file_prints(row.path for row in long).tolist()
    kept = {
        row.utt_id: folder / sha256_value([VERSION, *limits, content, row.audio])[:24]
        for row, content in zip(long, prints, strict=True)
    }
    found = {row.utt_id: _read(kept[row.utt_id]) for row in long}
    known = sum(cuts is not None for cuts in found.values())
    if known:
        logging.info("%d of %d recordings were segmented before", known, len(long))
    wavs = {row.utt_id: row.audio for row in long if found[row.utt_id] is None}
    problems = {}
    arguments = kept, limits
    calls = over_files(_segment, wavs, how.nj, "find speech", *arguments, each=1)
    for utt, cuts, problem in calls:
        if problem:
            problems[utt] = problem
        else:
            found[utt] = cuts
    skipped = SkippedAudio(output_dir / "skipped_recordings.tsv", how.max_bad_audio)
    skipped.add(manifest, {row.utt_id: row.audio for row in long}, problems)
    skipped.write()
    new: dict[str, list[Utterance]] = {
        row.utt_id: [*_parts(row, found[row.utt_id])] if found[row.utt_id] else []
        for row in long
    }
    for path in folder.glob("*") if folder.is_dir() else ():
        if path not in kept.values():
            path.unlink()
    result = [part for row in rows for part in new.get(row.utt_id, [row])]
    _report(long, found, len(rows), output_dir, how)
    return result


def _segment(
    utt: str, path: str, kept: dict[str, Path], limits: tuple[float, float]
) -> Cuts:
    """Segment a recording and keep the result; for :func:`over_files`."""
    cuts = cut_at_pauses(hear(path), *limits)
    write_json(kept[utt], asdict(cuts))
    return cuts


def _read(path: Path) -> Cuts | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = [Segment(**part) for part in content.pop("segments")]
        return Cuts(**content, segments=parts)
    return None


def _parts(row: Utterance, cuts: Cuts) -> Iterator[Utterance]:
    offset = row.start or 0.0
    for found in cuts.segments:
        own = Segment(round(offset + found.start, 6), round(offset + found.end, 6))
        yield replace(
            row,
            utt_id=segment_id(row.utt_id, own),
            start=own.start,
            end=own.end,
            text="",
            romanisation="",
            speaker=row.speaker or row.utt_id,
            seconds=own.end - own.start,
        )


def _report(
    rows: Sequence[Utterance],
    found: dict[str, Cuts | None],
    all_rows: int,
    output_dir: Path,
    how: Segmenting,
) -> None:
    languages: dict[str, dict[str, Any]] = {}
    lines = []
    for row in rows:
        entry = languages.setdefault(row.lang, dict.fromkeys(_COUNTS + _HOURS, 0))
        cuts = found[row.utt_id]
        entry["recordings"] += 1
        if cuts is None:
            entry["unusable"] += 1
            cuts = Cuts()
        entry["without_speech"] += not cuts.segments
        entry["segments"] += len(cuts.segments)
        entry["forced_cuts"] += cuts.forced
        entry["texts_lost"] += bool(row.text)
        seconds = cuts.seconds, cuts.speech, cuts.silence
        seconds += cuts.music_or_noise, cuts.too_short
        for name, value in zip(_HOURS, seconds, strict=True):
            entry[name] += value / 3600
        figures = seconds[0], len(cuts.segments), *seconds[1:], cuts.forced
        texts = (f"{x:.2f}" if isinstance(x, float) else str(x) for x in figures)
        lines.append("\t".join((row.utt_id, row.lang, *texts, row.path)))
    report = {
        "way": how.way,
        "min_duration": how.min_duration,
        "max_duration": how.max_duration,
        "left_whole": all_rows - len(rows),
        "languages": {
            lang: {k: round(v, 4) if k in _HOURS else int(v) for k, v in e.items()}
            for lang, e in sorted(languages.items())
        },
    }
    write_text(output_dir / LISTING, "\n".join(["\t".join(_COLUMNS), *lines]) + "\n")
    write_json(output_dir / REPORT, report)
    log_recordings(report, output_dir)


def read_report(directory: Path) -> dict[str, Any]:
    """Return what is known of a data folder's recordings; empty if none were cut."""
    path = directory / REPORT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def log_recordings(report: dict[str, Any], directory: Path) -> None:
    """Log what became of the hours of recordings, and warn of what is lost."""
    for lang, entry in report["languages"].items():
        text = "  %s: %d recordings, %.3f h: %.3f h of speech in %d segments, %.3f h "
        text += "silence, %.3f h music or noise, %.3f h of speech in pieces shorter "
        text += "than %g s; see %s"
        names = "recordings", *_HOURS[:2], "segments", *_HOURS[2:]
        figures = (entry[name] for name in names)
        least, listing = report["min_duration"], directory / LISTING
        logging.info(text, lang, *figures, least, listing)
        warnings = {
            "%d cuts in speech that goes on for more than %g s without a pause, at "
            "the least energetic place": (entry["forced_cuts"], report["max_duration"]),
            "the text of %d recordings is lost, since nothing says which part of it "
            "is said when; give start and end, or --segment file": (
                entry["texts_lost"],
            ),
            "%d recordings without speech": (
                entry["without_speech"] - entry["unusable"],
            ),
            "%d recordings cannot be used": (entry["unusable"],),
        }
        for message, values in warnings.items():
            if values[0]:
                logging.warning(f"%s: {message}", lang, *values)
        if not entry["segments"]:
            logging.warning("%s: no speech found in its recordings", lang)


def rows_of_table(
    rows: list[Utterance], manifest: Path, given: str = ""
) -> dict[str, list[Utterance]]:
    """Return the utterances that ``segments`` name, by the id of their recording.

    Raises:
        RecipeError: There is no such table, or it is not of these recordings.
    """
    tables = segment_tables(manifest, given)
    if not tables or not all(path.is_file() for path in tables):
        where = given or f"{manifest}: no file {SEGMENTS} beside it, so it"
        raise RecipeError(
            f"{where}: file not found; --segment file needs lines `utterance recording "
            "start end`: name the file with --segments, or cut at pauses with "
            "--segment vad"
        )
    by_name: dict[str, list[Utterance]] = defaultdict(list)
    for row in rows:
        for name in {row.utt_id, Path(row.path).stem, Path(row.path).name}:
            by_name[name].append(row)
    cut: dict[str, list[Utterance]] = defaultdict(list)
    unknown, seen = [], set()
    for path in tables:
        texts, speakers = (
            read_if_there(path.with_name(name)) for name in ("text", "utt2spk")
        )
        for utt, (recording, times) in read_segments(path).items():
            owners = by_name.get(recording, [])
            if len(owners) > 1:
                raise RecipeError(
                    f"{path}: {utt}: recording {recording!r} may be "
                    f"{owners[0].path} or {owners[1].path}; use utterance ids of the "
                    "manifest"
                )
            if utt in seen:
                raise RecipeError(f"{path}: {utt}: is in another segments file, too")
            seen.add(utt)
            if not owners:
                unknown.append(f"{utt} of {recording}")
                continue
            text, speaker = texts.get(utt, ""), speakers.get(utt, "")
            cut[owners[0].utt_id].append(_named(owners[0], utt, times, text, speaker))
    names = ", ".join(map(str, tables))
    if not cut:
        raise RecipeError(
            f"{names}: none of {len(unknown)} segments is of a recording of {manifest},"
            f" whose ids begin {rows[0].utt_id!r}; segments name, for example, "
            f"{unknown[0] if unknown else 'nothing'}"
        )
    if unknown:
        text = "%s: %d segments are of recordings that %s does not have:\n%s"
        logging.warning(text, names, len(unknown), manifest, listed(unknown))
    left = [row for row in rows if row.utt_id not in cut]
    if left:
        text = "%s: no line for %d of %d recordings, which are left out:\n%s"
        lines = listed([row.path for row in left])
        logging.warning(text, names, len(left), len(rows), lines)
    return cut


def _by_table(
    rows: list[Utterance], manifest: Path, output_dir: Path, how: Segmenting
) -> list[Utterance]:
    cut = rows_of_table(rows, manifest, how.segments)
    lengths = durations({row.utt_id: row.audio for row in rows}, how.nj)
    seconds = {utt: length or 0.0 for utt, length, _ in lengths}
    found: dict[str, Cuts | None] = {}
    for row in rows:
        own = cut.get(row.utt_id, [])
        ends = (p.end or seconds[row.utt_id] for p in own)
        parts = [Segment(p.start, end) for p, end in zip(own, ends, strict=True)]
        cuts = Cuts(seconds[row.utt_id], parts)
        # Nothing says what the rest is.
        cuts.silence = max(0.0, cuts.seconds - cuts.speech)
        found[row.utt_id] = cuts
    _report(rows, found, len(rows), output_dir, how)
    return [part for row in rows for part in cut.get(row.utt_id, [])]


def _named(
    row: Utterance, utt: str, times: Times, text: str, speaker: str
) -> Utterance:
    return replace(
        row,
        utt_id=utt,
        start=times[0],
        end=times[1],
        text=text,
        romanisation="",
        speaker=speaker or row.speaker or row.utt_id,
    )
