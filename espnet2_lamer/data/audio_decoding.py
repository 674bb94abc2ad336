"""One audio file: opened, decoded, and checked against what its container says."""

import hashlib
import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from espnet2_lamer.data.mp3 import scan, with_length

# libsndfile gives a length near 2^63 where a stream does not say it.
_UNKNOWN = 1 << 48
# Longer files are read in blocks: a damaged header may promise any length.
_BLOCK = 1 << 24
# One MPEG frame: encoders count their frames in two ways.
_MP3_SLACK = 1152


class Unusable(Exception):
    """A file that cannot be used; the message says why."""


@dataclass(frozen=True)
class Source:
    """An open audio file.

    Attributes:
        file: ``soundfile.SoundFile``.
        path: Where it is.
        frames: Samples per channel by the container; None where it does not say.
    """

    file: Any
    path: str
    frames: int | None


@contextmanager
def open_audio(path: str) -> Iterator[Source]:
    """Open an audio file of a format that libsndfile reads.

    Raises:
        Unusable: It is missing, empty, not audio, or its MP3 frames cannot be whole.
    """
    import soundfile

    if path.endswith("|"):
        raise Unusable("is a command; expected a file")
    try:
        size = os.stat(path).st_size
    except OSError:
        raise Unusable("file not found") from None
    if size == 0:
        raise Unusable("empty file (0 bytes)")
    try:
        file = soundfile.SoundFile(path)
    except (OSError, RuntimeError, ValueError) as error:
        raise Unusable(f"not readable as audio ({error})") from None
    frames = file.frames if file.frames < _UNKNOWN else None
    if file.format == "MP3":
        file, frames = _with_true_length(file, path)
    with file:
        yield Source(file, path, frames)


def _with_true_length(file, path: str):
    import soundfile

    with open(path, "rb") as handle:
        data = handle.read()
    stream = scan(data)
    if stream is None:
        return file, file.frames
    if stream.problem:
        file.close()
        raise Unusable(stream.problem)
    if stream.stated is not None:
        if abs(file.frames - stream.samples + stream.trimmed) > 2 * _MP3_SLACK:
            frames = file.frames
            file.close()
            raise Unusable(
                f"header lies about the length: by it {frames} samples, "
                f"{stream.samples - stream.trimmed} by the MPEG frames"
            )
        return file, file.frames
    if stream.varying:
        file.close()
        file = soundfile.SoundFile(io.BytesIO(with_length(data, stream)))
    return file, stream.samples


def duration(source: Source) -> float:
    """Return the length in seconds; the file is read where its container is silent."""
    frames = source.frames
    if frames is None:
        frames = len(_read(source))
    return frames / source.file.samplerate


def decode(source: Source, check: bool = True) -> np.ndarray:
    """Return all samples, float32 ``[frames, channels]``, after checking the file.

    Found are: fewer samples than the container promises (all formats), more (WAV with
    bytes after its samples that are no chunk; FLAC by its MD5; MP3, see
    ``data.mp3``), missing or damaged pages (Ogg), damaged FLAC frames, NaN and infinite
    samples. Not found are changed samples and a wrong sampling rate of a WAV file,
    which has no checksum, and what ``data.mp3.scan`` cannot see.

    Args:
        source: Open file.
        check: False: only what libsndfile and NaN show.

    Raises:
        Unusable: The file is damaged, has no samples, or holds NaN.
    """
    if check and source.file.format in ("WAV", "WAVEX"):
        _check_wav(source.path)
    elif check and source.file.format == "OGG":
        _check_ogg(source.path)
    if source.frames == 0:
        raise Unusable("no samples (zero length)")
    samples = _read(source)
    slack = _MP3_SLACK if source.file.format == "MP3" else 0
    if source.frames is not None and len(samples) < source.frames - slack:
        raise Unusable(
            f"truncated: header promises {source.frames} samples, {len(samples)} "
            "readable"
        )
    if len(samples) == 0:
        raise Unusable("no samples (zero length)")
    if check and source.file.format == "FLAC":
        _check_flac(source.path, samples)
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / np.float32(1 << 15)
    if not np.isfinite(samples).all():
        raise Unusable("holds NaN or infinite samples")
    return samples


def _read(source: Source) -> np.ndarray:
    # The MD5 of FLAC is that of the integers.
    whole = (source.file.format, source.file.subtype) == ("FLAC", "PCM_16")
    dtype = "int16" if whole else "float32"
    blocks = []
    try:
        if source.frames is not None and source.frames <= _BLOCK:
            return source.file.read(dtype=dtype, always_2d=True)
        # soundfile seeks after each read, which fails where the length is unknown.
        source.file.seekable = lambda: False
        while len(block := source.file.read(_BLOCK, dtype=dtype, always_2d=True)):
            blocks.append(block)
    except (OSError, RuntimeError, ValueError) as error:
        raise Unusable(f"truncated or damaged ({error})") from None
    return np.concatenate(blocks or [np.empty((0, 1), dtype)])


def _check_wav(path: str) -> None:
    # libsndfile quietly goes by the shorter of header and file.
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
        if size >= 0x7FFFF000:
            return
        if available < size:
            raise Unusable(
                f"truncated: header promises {size} bytes of samples, {available} there"
            )
        handle.seek(size, os.SEEK_CUR)
        following = handle.read(9)
    # Not every program pads a chunk of odd length.
    names = (following[:4], following[size % 2 :][:4])
    if len(following) > 8 and not any(all(32 <= c < 127 for c in n) for n in names):
        raise Unusable(
            f"header lies about the length: it promises {size} bytes of samples, but "
            f"{available} follow"
        )


def _check_ogg(path: str) -> None:
    # Pages (RFC 3533, 6): flags in byte 5, stream in 14-17, number in 18-21, checksum
    # in 22-25, and in byte 26 how many sizes follow. libsndfile passes over damaged
    # ones, and takes a damaged first page for a stream that starts later.
    with open(path, "rb") as handle:
        data = handle.read()
    position, flags = 0, 0
    expected: dict[bytes, int] = {}
    while position < len(data):
        head = data[position : position + 27]
        sizes = data[
            position + 27 : position + 27 + (head[26] if len(head) > 26 else 0)
        ]
        page = data[position : position + 27 + len(sizes) + sum(sizes)]
        if not head.startswith(b"OggS"):
            raise Unusable(f"damaged: no Ogg page at byte {position} of {len(data)}")
        if len(head) < 27 or len(sizes) < head[26] or len(page) < 27 + sum(sizes):
            raise Unusable("truncated: the last Ogg page is cut")
        checksum, number = (struct.unpack("<I", head[i : i + 4])[0] for i in (22, 18))
        if _ogg_checksum(page) != checksum:
            raise Unusable(f"damaged: Ogg page {number} does not match its checksum")
        if number != expected.get(head[14:18], number):
            raise Unusable(f"damaged: Ogg pages are missing before page {number}")
        expected[head[14:18]] = number + 1
        flags = head[5]
        position += len(page)
    if not flags & 0x04:
        raise Unusable("truncated: the last Ogg page is missing")


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_checksum(page: bytes) -> int:
    # zlib's polynomial, with bits the other way round and nothing inverted.
    mirrored = (page[:22] + bytes(4) + page[26:]).translate(_MIRRORED)
    value = zlib.crc32(mirrored, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{value:032b}"[::-1], 2)


def _check_flac(path: str, samples: np.ndarray) -> None:
    # STREAMINFO (RFC 9639, 8.2) comes first: bits of a sample, MD5 of all samples.
    with open(path, "rb") as handle:
        head = handle.read(42)
    if head[:4] != b"fLaC":
        return
    bits = ((head[20] & 1) << 4 | head[21] >> 4) + 1
    promised = head[26:42]
    # float32 holds samples of up to 24 bits; a writer may leave the MD5 out.
    if bits > 24 or promised == bytes(16):
        return
    if samples.dtype == np.int16:
        raw = samples.astype("<i2", copy=False).tobytes()
    else:
        size = (bits + 7) // 8
        integers = np.rint(samples * np.float32(2 ** (bits - 1))).astype("<i4")
        raw = integers.view(np.uint8).reshape(-1, 4)[:, :size].tobytes()
    if hashlib.md5(raw, usedforsecurity=False).digest() != promised:
        raise Unusable(
            "header lies about the length, or samples are damaged: the MD5 of the "
            f"{len(samples)} samples is another than the header's"
        )
