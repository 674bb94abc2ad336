"""Audio files of a data directory: checked, and converted to 16 kHz mono FLAC."""

import os
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path
from espnet2_lamer.fileio.hashing import sha256_value

SAMPLE_RATE = 16000
#: What libsndfile decodes and the recipe accepts.
EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
_KEPT_AS_THEY_ARE = ("WAV", "WAVEX", "RF64", "FLAC")
_LISTED = 10
_BATCH = 16


@dataclass(frozen=True)
class Audio:
    """One utterance's audio after preparation.

    Attributes:
        path: 16 kHz mono file; the original if it was one already (WAV or FLAC).
        num_samples: At 16 kHz.
        resampled: The original had another sampling rate.
        downmixed: The original had more than one channel.
        decoded: The original had another format than WAV or FLAC.
    """

    path: str
    num_samples: int
    resampled: bool = False
    downmixed: bool = False
    decoded: bool = False


class _Unusable(Exception):
    """A file that cannot be used; the message says why."""


def prepare_audio(
    wavs: Mapping[str, str], wav_scp: str | Path, audio_dir: str | Path, nj: int = 1
) -> dict[str, Audio]:
    """Check every file to its last sample and convert those that need it.

    Files of another rate, with more channels or in another format than WAV or FLAC
    become ``<audio_dir>/<utt>.flac`` (16 kHz, mono, 16 bit), each written by rename;
    one that was converted from the same file before is kept.

    Args:
        wavs: Utterance id to path: all or some lines of ``wav_scp``.
        wav_scp: Named in errors.
        audio_dir: Where converted files go.
        nj: Processes.

    Raises:
        RecipeError: Files are missing, empty, truncated, not audio, or hold NaN: all
            are counted, the first 10 named.
    """
    return _over_files(_prepare, wavs, wav_scp, nj, "check audio", str(audio_dir))


def header_seconds(
    wavs: Mapping[str, str], wav_scp: str | Path, nj: int = 1
) -> dict[str, float]:
    """Return each file's duration in seconds by its header.

    Raises:
        RecipeError: Files are missing, empty or not audio.
    """
    return _over_files(_header_seconds, wavs, wav_scp, nj, "read durations")


def _over_files(function, wavs, wav_scp, nj, description, *args) -> dict:
    from joblib import Parallel, delayed
    from tqdm import tqdm

    results: dict = {}
    problems: dict[str, str] = {}
    bar = tqdm(
        total=len(wavs), desc=description, unit="file", disable=not sys.stderr.isatty()
    )
    with Parallel(n_jobs=nj, return_as="generator") as parallel, bar:
        for part in parallel(
            delayed(_apply)(function, batch, args) for batch in _batches(wavs.items())
        ):
            for utt, result, problem in part:
                if problem:
                    problems[utt] = problem
                else:
                    results[utt] = result
                bar.update()
    if problems:
        _raise_unusable(problems, wavs, wav_scp)
    return results


def _batches(items: Iterable) -> Iterator[list]:
    iterator = iter(items)
    while batch := list(islice(iterator, _BATCH)):
        yield batch


def _apply(function, batch: list[tuple[str, str]], args: tuple) -> list[tuple]:
    results = []
    for utt, path in batch:
        try:
            results.append((utt, function(utt, path, *args), ""))
        except _Unusable as error:
            results.append((utt, None, str(error)))
    return results


def _raise_unusable(
    problems: dict[str, str], wavs: Mapping[str, str], wav_scp: str | Path
) -> None:
    listed = list(problems.items())[:_LISTED]
    lines = [f"  {utt} {wavs[utt]}: {problem}" for utt, problem in listed]
    if len(problems) > len(listed):
        lines.append(f"  ... and {len(problems) - len(listed)} more")
    raise RecipeError(
        f"{wav_scp}: {len(problems)} of {len(wavs)} audio files cannot be used; repair "
        "them or take them out of the corpus:\n" + "\n".join(lines)
    )


def _open(path: str):
    import soundfile

    if path.endswith("|"):
        raise _Unusable("is a command; expected a file")
    try:
        size = os.stat(path).st_size
    except OSError:
        raise _Unusable("file not found") from None
    if size == 0:
        raise _Unusable("empty file (0 bytes)")
    try:
        return soundfile.SoundFile(path)
    except (OSError, RuntimeError) as error:
        raise _Unusable(f"not readable as audio ({error})") from None


def _header_seconds(utt: str, path: str) -> float:
    with _open(path) as source:
        return source.frames / source.samplerate


def _prepare(utt: str, path: str, audio_dir: str) -> Audio:
    with _open(path) as source:
        resampled = source.samplerate != SAMPLE_RATE
        downmixed = source.channels > 1
        decoded = source.format not in _KEPT_AS_THEY_ARE
        rate = source.samplerate
        change = {"resampled": resampled, "downmixed": downmixed, "decoded": decoded}
        converted = Path(audio_dir) / f"{utt}.flac"
        if any(change.values()):
            known = _already_converted(path, converted)
            if known is not None:
                return Audio(converted.as_posix(), known, **change)
        samples = _read_all(source, path)
    if not any(change.values()):
        return Audio(path, len(samples))
    samples = _to_16k_mono(samples, rate)
    _write(samples, path, converted)
    return Audio(converted.as_posix(), len(samples), **change)


def _read_all(source, path: str) -> np.ndarray:
    """Return ``[frames, channels]`` float32 after checking that all of it is there."""
    promised = source.frames
    if promised == 0:
        raise _Unusable("no samples (zero length)")
    if source.format in ("WAV", "WAVEX"):
        _check_wav_size(path)
    elif source.format == "OGG":
        _check_ogg_end(path)
    try:
        samples = source.read(dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:
        raise _Unusable(f"truncated or damaged ({error})") from None
    if len(samples) < promised:
        raise _Unusable(
            f"truncated: header promises {promised} samples, {len(samples)} readable"
        )
    if not np.isfinite(samples).all():
        raise _Unusable("holds NaN or infinite samples")
    return samples


def _check_wav_size(path: str) -> None:
    # libsndfile quietly shortens a WAV whose data ends early; its header tells.
    with open(path, "rb") as handle:
        order = ">" if handle.read(4) == b"RIFX" else "<"
        handle.seek(12)
        while len(head := handle.read(8)) == 8:
            name, size = head[:4], struct.unpack(f"{order}I", head[4:])[0]
            if name == b"data":
                break
            handle.seek(size + size % 2, os.SEEK_CUR)
        else:
            return
        available = os.fstat(handle.fileno()).st_size - handle.tell()
    # Programs that write to a pipe leave the largest sizes as "unknown".
    if available < size < 0x7FFFF000:
        raise _Unusable(
            f"truncated: header promises {size} bytes of samples, {available} there"
        )


def _check_ogg_end(path: str) -> None:
    # The last page of an Ogg stream carries the end-of-stream flag (RFC 3533, 6).
    with open(path, "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        handle.seek(max(0, size - 65536 - 282))
        tail = handle.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    # Byte 5 holds the flags, byte 26 the number of sizes that follow.
    whole = len(page) > 26 and len(page) >= 27 + page[26] + sum(
        page[27 : 27 + page[26]]
    )
    if not whole or not page[5] & 0x04:
        raise _Unusable("truncated: the last Ogg page is missing or cut")


def _to_16k_mono(samples: np.ndarray, rate: int) -> np.ndarray:
    mono = samples.mean(axis=1, dtype=np.float32)
    if rate != SAMPLE_RATE:
        import soxr

        mono = soxr.resample(mono, rate, SAMPLE_RATE)
    if mono.size == 0:
        raise _Unusable("no samples left at 16 kHz (zero length)")
    # The low-pass of resampling can overshoot; 16-bit files would clip it.
    peak = float(np.abs(mono).max())
    return mono * (0.999 / peak) if peak > 0.999 else mono


def _origin(path: str) -> str:
    # Without the folder, so that a corpus that moved gives the same bytes.
    return sha256_value([os.path.basename(path), os.stat(path).st_size])[:16]


def _already_converted(path: str, converted: Path) -> int | None:
    import soundfile

    try:
        if os.stat(converted).st_mtime_ns != os.stat(path).st_mtime_ns:
            return None
        with soundfile.SoundFile(converted) as known:
            return known.frames if known.comment == _origin(path) else None
    except (OSError, RuntimeError):
        return None


def _write(samples: np.ndarray, path: str, converted: Path) -> None:
    import soundfile

    with atomic_path(converted) as temporary:
        with soundfile.SoundFile(
            temporary, "w", SAMPLE_RATE, 1, format="FLAC", subtype="PCM_16"
        ) as target:
            target.comment = _origin(path)
            target.write(samples)
        # The original's time marks what the file was made from.
        stat = os.stat(path)
        os.utime(temporary, ns=(stat.st_atime_ns, stat.st_mtime_ns))
