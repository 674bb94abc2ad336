"""Audio files checked to their last sample, and converted to 16 kHz mono FLAC."""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path

import numpy as np

from espnet2_lamer.constants import RECEPTIVE_FIELD, SAMPLE_RATE
from espnet2_lamer.data.audio import (
    SkippedAudio,
    file_seconds,
    over_files,
    usable_alone,
)
from espnet2_lamer.data.audio_decoding import (
    Source,
    Unusable,
    decode,
    duration,
    open_audio,
    part,
)
from espnet2_lamer.data.audio_fingerprint import QUERY_STEP, Fingerprint, fingerprint
from espnet2_lamer.data.recordings import cut
from espnet2_lamer.data.segments import (
    Times,
    by_recording,
    part_of,
    recording_and_times,
)
from espnet2_lamer.data.usable import (
    FLOATS,
    changes_by_header,
    to_speech,
    usable_speech,
)
from espnet2_lamer.fileio.atomic import atomic_path
from espnet2_lamer.fileio.hashing import sha256_file, sha256_value
from espnet2_lamer.fileio.system import check_space

# Headers read before a set is converted, and the least that a second of speech takes:
# a third of its 16-bit samples.
_SOME = 200
_FLAC_BYTES_PER_SECOND = 2 * SAMPLE_RATE / 3
# Raised when files are checked in another way: those converted before are made anew.
_VERSION = 2
_VERSION_OF_FLOATS_AND_CHANNELS = 3
# A set with more files to convert gets folders, so that none holds a million.
_FLAT = 10_000


@dataclass(frozen=True)
class Audio:
    """One utterance's audio after preparation; at last how the original differed."""

    path: str  # 16 kHz mono; the original if it is a WAV or FLAC file of that kind
    num_samples: int  # at 16 kHz
    seconds: float  # of the original, which is what limits refer to
    fingerprint: Fingerprint | None = None  # to look it up in others, if asked for
    resampled: bool = False
    downmixed: bool = False  # had more than one channel
    decoded: bool = False  # was neither WAV nor FLAC, or did not say its length
    rescaled: bool = False  # floats of an integer's size
    one_channel: bool = False  # of several, whose average cancels
    cut: bool = False  # a part of a recording


def prepare_audio(
    wavs: Mapping[str, str],
    wav_scp: str | Path,
    audio_dir: str | Path,
    nj: int = 1,
    skipped: SkippedAudio | None = None,
    fingerprints: bool = False,
    limits: tuple[float, float] = (0.0, inf),
) -> dict[str, Audio]:
    """Check every file to its last sample and convert those that need it.

    Files that :func:`usable_speech` changes become ``<audio_dir>/<utt>.flac`` (16 kHz,
    mono, 16 bit), of a large ``wav_scp`` ``<audio_dir>/<00 to ff>/<utt>.flac``, each
    written by rename; one that was converted from the same content before is kept.
    ``wavs`` are all or some lines of ``wav_scp``. Unusable ones go to ``skipped`` and
    are left out. Those whose headers say that they are longer than ``limits``, in
    seconds, are not decoded; neither they nor what is shorter is converted.

    Raises:
        RecipeError: Files are missing, empty, truncated, not audio, silent, hold NaN or
            absurd samples, or are not what their headers say (see
            ``audio_decoding.decode``): any without ``skipped``, too many with it.
    """
    large = len(wavs) > _FLAT
    _check_room(wavs, Path(audio_dir), limits, large)
    options = str(audio_dir), large, fingerprints, limits
    parts = by_recording(wavs.items())
    whole = {u: p for u, p in wavs.items() if recording_and_times(p)[1] is None}
    prepared = [*over_files(_prepare, whole, nj, "check audio", *options)]
    if parts:
        paths = {path: path for path in parts}
        more = parts, *options
        cutting = over_files(_prepare_parts, paths, nj, "cut recordings", *more, each=1)
        for path, found, problem in cutting:
            prepared += found or [(utt, None, problem) for utt in parts[path]]
    return usable_alone(prepared, wavs, wav_scp, skipped)


def _places(utt: str, audio_dir: Path, large: bool) -> list[Path]:
    """Where a converted file belongs, and where it is if the set had another size."""
    folder = sha256_value(utt)[:2]
    places = [audio_dir / f"{utt}.flac", audio_dir / folder / f"{utt}.flac"]
    return places[::-1] if large else places


def _prepare(
    utt: str,
    path: str,
    audio_dir: str,
    large: bool,
    fingerprints: bool,
    limits: tuple[float, float],
) -> Audio:
    places = _places(utt, Path(audio_dir), large)
    converted = places[0]
    with open_audio(path) as source:
        unknown = source.frames is None
        # Counting reads the file, and there is no way back.
        seconds = file_seconds(utt, path) if unknown else duration(source)
        if seconds > limits[1]:
            return Audio(path, 0, seconds)
        known = None
        changes = changes_by_header(source)
        if any(changes.values()) or source.file.subtype in FLOATS:
            known = _converted_before(path, source, places)
        if known is not None:
            converted, mono, more = known
            changes |= dict.fromkeys(more, True)
        else:
            mono, changes = usable_speech(source)
            if len(mono) < RECEPTIVE_FIELD or seconds < limits[0]:
                return Audio(path, len(mono), seconds)
            if any(changes.values()):
                told = changes_by_header(source)
                more = [x for x in changes if changes[x] and x not in told]
                origin = _origin(path, source, sha256_file(path))
                with atomic_path(converted) as temporary:
                    write_flac(temporary, mono, " ".join([origin, *more]))
    return Audio(
        converted.as_posix() if any(changes.values()) else path,
        len(mono),
        seconds,
        fingerprint(mono, QUERY_STEP) if fingerprints else None,
        **changes,
    )


def _prepare_parts(
    _: str,
    recording: str,
    parts: Mapping[str, Mapping[str, Times]],
    audio_dir: str,
    large: bool,
    fingerprints: bool,
    limits: tuple[float, float],
) -> list[tuple[str, Audio | None, str]]:
    """Prepare all parts of a recording in one pass.

    Raises:
        Unusable: The recording is damaged: nothing of it stays.
    """
    own, results, left = parts[recording], {}, {}
    content = sha256_file(recording) if os.path.isfile(recording) else ""
    written: list[Path] = []

    def finish(utt: str, piece: Source, samples: np.ndarray) -> Audio:
        seconds = len(samples) / piece.file.samplerate
        mono, changes = to_speech(samples, piece)
        if len(mono) < RECEPTIVE_FIELD or not limits[0] <= seconds <= limits[1]:
            return Audio(part_of(recording, *own[utt]), len(mono), seconds)
        more = [x for x in ("rescaled", "one_channel") if changes[x]]
        converted = _places(utt, Path(audio_dir), large)[0]
        with atomic_path(converted) as temporary:
            write_flac(temporary, mono, " ".join([origin(utt, piece), *more]))
        written.append(converted)
        return describe(converted, mono, seconds, changes)

    def origin(utt: str, piece: Source) -> str:
        return _origin(recording, piece, f"{content} {own[utt]}")

    def describe(path: Path, mono: np.ndarray, seconds: float, changes) -> Audio:
        print_ = fingerprint(mono, QUERY_STEP) if fingerprints else None
        return Audio(path.as_posix(), len(mono), seconds, print_, **changes)

    def attempt(utt: str, piece: Source, samples: np.ndarray | Unusable) -> None:
        try:
            if isinstance(samples, Unusable):
                raise samples
            results[utt] = utt, finish(utt, piece, samples), ""
        except Unusable as error:
            results[utt] = utt, None, str(error)

    with open_audio(recording) as source:
        for utt, times in own.items():
            places = _places(utt, Path(audio_dir), large)
            try:
                piece = part(source, times)
            except Unusable as error:
                results[utt] = utt, None, str(error)
                continue
            known = _made_from(places, partial(_same, origin(utt, piece)))
            seconds = inf if piece.frames is None else duration(piece)
            if known is not None:
                converted, mono, more = known
                changes = changes_by_header(piece) | dict.fromkeys(more, True)
                seconds = min(seconds, len(mono) / SAMPLE_RATE)
                results[utt] = utt, describe(converted, mono, seconds, changes), ""
            elif piece.frames is not None and seconds > limits[1]:
                audio = Audio(part_of(recording, *times), 0, seconds)
                results[utt] = utt, audio, ""
            else:
                left[utt] = times
        # One is kept back until the recording's end was seen to be sound: a run that
        # finds all parts there need not look again.
        last: tuple = ()
        try:
            for found in cut(source, left) if left else ():
                if last:
                    attempt(*last)
                last = found
        except Unusable:
            for path in written:
                path.unlink(missing_ok=True)
            raise
        if last:
            attempt(*last)
    return [results[utt] for utt in own]


def _check_room(
    wavs: Mapping[str, str],
    audio_dir: Path,
    limits: tuple[float, float],
    large: bool,
) -> None:
    """Refuse to convert what the disk cannot hold; some files tell how much it is."""
    seconds = 0.0
    some = list(wavs)[:: max(1, len(wavs) // _SOME)]
    for utt in some:
        with suppress(Unusable), open_audio(wavs[utt]) as source:
            change = any(changes_by_header(source).values())
            places = _places(utt, audio_dir, large)
            if change and not any(map(Path.is_file, places)):
                length = duration(source)
                seconds += length if limits[0] <= length <= limits[1] else 0
    needed = seconds * _FLAC_BYTES_PER_SECOND * len(wavs) / max(1, len(some))
    way_out = "name another folder with --dumpdir"
    check_space(audio_dir, needed, "files at 16 kHz, by estimate,", way_out)


def _origin(path: str, source: Source, content: str | int) -> str:
    file, version = source.file, _VERSION
    if file.channels > 1 or file.subtype in FLOATS:
        version = _VERSION_OF_FLOATS_AND_CHANNELS
    # Without folder and time, so that a corpus that moved gives the same bytes.
    return sha256_value([version, os.path.basename(path), content])[:16]


def _converted_before(
    path: str, source: Source, places: Sequence[Path]
) -> tuple[Path, np.ndarray, list[str]] | None:
    """What was made of the file's content before, if it is whole."""

    def is_ours(origin: str, converted: Path) -> bool:
        old, new = os.stat(path), os.stat(converted)
        # Before 0.3 size and time, which the converted file had, were the content.
        same_time = old.st_mtime_ns == new.st_mtime_ns
        return (same_time and origin == _origin(path, source, old.st_size)) or (
            origin == _origin(path, source, sha256_file(path))
        )

    return _made_from(places, is_ours)


def _same(wanted: str, found: str, _: Path) -> bool:
    return wanted == found


def _made_from(
    places: Sequence[Path], is_ours: Callable[[str, Path], bool]
) -> tuple[Path, np.ndarray, list[str]] | None:
    """Find a converted file whose origin is the wanted one.

    Its place, its samples, and the changes that the header does not tell.
    """
    for converted in filter(Path.is_file, places):
        with (
            suppress(Unusable, OSError, ValueError),
            open_audio(str(converted)) as known,
        ):
            origin, *changes = known.file.comment.split()
            if is_ours(origin, converted):
                return converted, decode(known)[:, 0], changes
    return None


def write_flac(path: Path, samples: np.ndarray, comment: str = "") -> None:
    """Write 16 kHz mono audio, float in -1 to 1, as 16-bit FLAC; not by rename.

    Raises:
        OSError: It cannot be written.
    """
    import soundfile

    # In memory first: libsndfile takes a short write at the end of a file for success.
    content, kind = io.BytesIO(), {"format": "FLAC", "subtype": "PCM_16"}
    with soundfile.SoundFile(content, "w", SAMPLE_RATE, 1, **kind) as target:
        if comment:
            target.comment = comment
        target.write(samples)
    # Not `getbuffer`, without a copy: CPython 3.12.1 crashes if writing that fails.
    path.write_bytes(content.getvalue())


def converted_bytes(seconds: float) -> int:
    """Return about what converted audio takes on disk: FLAC, 16 kHz, mono."""
    return round(seconds * _FLAC_BYTES_PER_SECOND)
