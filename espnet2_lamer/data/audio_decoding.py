"""One audio file: opened, decoded, and checked against what its container says."""

import hashlib
import io
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_lamer.data.audio_files import what_it_is
from espnet2_lamer.data.mp3 import scan, with_length
from espnet2_lamer.data.segments import Times, recording_and_times

# libsndfile gives a length near 2^63 where a stream does not say it.
_UNKNOWN = 1 << 48
# Programs that write to a pipe leave the largest sizes.
_UNKNOWN_BYTES = 0x7FFFF000
# Bytes that programs count in a file's size or not, and libsndfile's note of others.
_SLOPPY = 16
_SIZES = re.compile(r": (\d+) \(should be (\d+)\)")
#: Seconds that a part may end after its recording, which Kaldi forgives, too.
OVERSHOT = 0.5
# Formats in which a sample is found without reading those before it.
_SEEKABLE = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "FLAC", "NIST", "CAF")
# What is read of a recording at once, in samples of all channels.
_PIECE = 1 << 18
# Longer files are read in blocks: a damaged header may promise any length.
_BLOCK = 1 << 24
# One MPEG frame: encoders count their frames in two ways.
_MP3_SLACK = 1152
# Floats above are no hot recording; full scales of integers that were stored as floats,
# which resampling may have taken beyond; and how far speech is above its usual level.
_LOUDEST = 16.0
_FULL_SCALES = (2.0**15, 2.0**23, 2.0**31)
_OVERSHOOT = 1.5
_CREST = 1000.0


class Unusable(Exception):
    """A file that cannot be used; the message says why."""


@dataclass(frozen=True)
class Source:
    """An open audio file."""

    file: Any  # soundfile.SoundFile
    frames: int | None  # samples per channel, where the container says it
    start: int | None = None  # first sample, if it is a part of a recording


@contextmanager
def open_audio(path: str) -> Iterator[Source]:
    """Open an audio file of a format that libsndfile reads, or a part of one.

    ``path`` may be one of :func:`~espnet2_lamer.data.segments.part_of`.

    Raises:
        Unusable: It is missing, empty, not audio, its MP3 frames cannot be whole, or
            the part is not in it.
    """
    import soundfile

    path, times = recording_and_times(path)
    if path.endswith("|"):
        raise Unusable("is a command; expected a file")
    try:
        size = os.stat(path).st_size
    except OSError:
        raise Unusable("file not found") from None
    if size == 0:
        raise Unusable("empty file (0 bytes)")
    # MPEG decoders search what is no audio for frames, and may find some.
    if Path(path).suffix.lower() == ".mp3" and (found := what_it_is(path)):
        raise Unusable(f"not readable as audio: {found}")
    try:
        file = soundfile.SoundFile(path)
    except (OSError, RuntimeError, ValueError) as error:
        found = what_it_is(path) or str(error).rpartition(f"{path}': ")[2]
        # What libsndfile says of MPEG without frames.
        found = "no audio found" if "does not exist" in found else found
        raise Unusable(f"not readable as audio: {found}") from None
    with file:
        frames = file.frames if file.frames < _UNKNOWN else None
        if file.format == "MP3":
            with open(path, "rb") as handle:
                data = handle.read()
            if stream := scan(data):
                if stream.problem:
                    raise Unusable(stream.problem)
                if stream.stated is None:
                    frames = stream.samples
                    if stream.varying:
                        whole = io.BytesIO(with_length(data, stream))
                        file = soundfile.SoundFile(whole)
                else:
                    _compare_lengths(file.frames, stream.samples - stream.trimmed)
        with file:
            whole = Source(file, frames)
            yield whole if times is None else part(whole, times)


def part(source: Source, times: Times) -> Source:
    """Return the part of an open recording; its end may be half a second too late.

    Raises:
        Unusable: It is outside.
    """
    rate = source.file.samplerate
    start = round(times[0] * rate)
    last = source.frames if times[1] is None else round(times[1] * rate)
    if source.frames is not None:
        if last - source.frames > OVERSHOT * rate or start >= source.frames:
            raise Unusable(outside(times, source.frames / rate))
        last = min(last, source.frames)
    return replace(source, frames=None if last is None else last - start, start=start)


def _compare_lengths(stated: int, samples: int) -> None:
    if abs(stated - samples) > 2 * _MP3_SLACK:
        raise Unusable(
            f"header lies about the length: by it {stated} samples, {samples} by the "
            "MPEG frames"
        )


def outside(times: Times, length: float) -> str:
    """Say that a part is not in its recording."""
    first, last = times
    span = f"{first:g} s to " + ("its end" if last is None else f"{last:g} s")
    return f"the part from {span} is outside: the recording has {length:.2f} s"


def duration(source: Source) -> float:
    """Return the length in seconds; the file is read where its container is silent."""
    frames = source.frames
    if frames is None:
        frames = sum(map(len, _blocks(source)))
    return frames / source.file.samplerate


def decode(source: Source, check: bool = True) -> np.ndarray:
    """Return all samples, float32 ``[frames, channels]``, after checking the file.

    Found are: fewer samples than the container promises (all formats), more (WAV with
    bytes after its samples that are no chunk; FLAC by its MD5; MP3, see
    :func:`~espnet2_lamer.data.mp3.scan`), missing or damaged pages (Ogg), damaged FLAC
    frames, NaN and infinite samples. Not found are changed samples and a wrong sampling
    rate of a WAV file, which has no checksum, and what ``scan`` cannot see.

    Without ``check``, and of a part, only what libsndfile and NaN show.

    Raises:
        Unusable: The file is damaged, has no samples, or holds NaN.
    """
    if source.start is not None:
        return np.concatenate([*_part_pieces(source)])
    kind, path = source.file.format, source.file.name
    if check:
        _check_container(source)
    blocks = [*_blocks(source)]
    samples = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    slack = _MP3_SLACK if kind == "MP3" else 0
    if source.frames is not None and len(samples) < source.frames - slack:
        raise Unusable(
            f"truncated: header promises {source.frames} samples, {len(samples)} "
            "readable"
        )
    if len(samples) == 0:
        raise Unusable("no samples (zero length)")
    if check and kind == "FLAC":
        sums = _FlacSum(path)
        sums.update(samples)
        sums.compare()
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / np.float32(1 << 15)
    if not np.isfinite(samples).all():
        raise Unusable("holds NaN or infinite samples")
    return samples


def _check_container(source: Source) -> None:
    kind, path = source.file.format, source.file.name
    if kind in ("WAV", "WAVEX"):
        _check_wav(path)
    elif kind == "OGG":
        _check_ogg(path)
    elif kind not in ("FLAC", "MP3"):
        _check_sizes(source)


def stream(source: Source, check: bool = True) -> Iterator[np.ndarray]:
    """Yield the samples of a file, or part, in pieces, float32 ``[some, channels]``.

    The same is checked as by :func:`decode`, some of it at the end.

    Raises:
        Unusable: As :func:`decode`.
    """
    if source.start is not None:
        yield from _part_pieces(source)
        return
    file, count = source.file, 0
    if check:
        _check_container(source)
    whole = (file.format, file.subtype) == ("FLAC", "PCM_16")
    sums = _FlacSum(file.name) if check and file.format == "FLAC" else None
    for block in _pieces(source, "int16" if whole else "float32"):
        count += len(block)
        if sums:
            sums.update(block)
        if whole:
            block = block.astype(np.float32) / np.float32(1 << 15)
        elif not np.isfinite(block).all():
            raise Unusable("holds NaN or infinite samples")
        yield block
    slack = _MP3_SLACK if file.format == "MP3" else 0
    if source.frames is not None and count < source.frames - slack:
        raise Unusable(
            f"truncated: header promises {source.frames} samples, {count} readable"
        )
    if count == 0:
        raise Unusable("no samples (zero length)")
    if sums:
        sums.compare()


def _pieces(source: Source, dtype: str) -> Iterator[np.ndarray]:
    file = source.file
    if source.frames is None:
        file.seekable = lambda: False
    size = _PIECE // file.channels
    try:
        while len(block := file.read(size, dtype=dtype, always_2d=True)):
            yield block
    except (OSError, RuntimeError, ValueError) as error:
        raise Unusable(f"truncated or damaged ({error})") from None


def _part_pieces(source: Source) -> Iterator[np.ndarray]:
    """Read from the start of a part to its end; only some formats let us jump there."""
    file, skip, left = source.file, source.start, source.frames
    if file.format in _SEEKABLE and left is not None:
        try:
            file.seek(skip)
        except (OSError, RuntimeError) as error:
            raise Unusable(f"truncated or damaged ({error})") from None
        skip = 0
    count = 0
    for block in _pieces(source, "float32"):
        own = block[skip:][:left]
        skip = max(0, skip - len(block))
        left = None if left is None else left - len(own)
        count += len(own)
        if not np.isfinite(own).all():
            raise Unusable("holds NaN or infinite samples")
        yield own
        if left == 0:
            break
    slack = _MP3_SLACK if file.format == "MP3" else 0
    if (left or 0) > slack + OVERSHOT * file.samplerate or not count:
        raise Unusable(f"truncated: the recording ends {left or 0} samples too early")


def _blocks(source: Source) -> Iterator[np.ndarray]:
    """Yield all samples; the last block of a file of unknown length is empty."""
    file = source.file
    # The MD5 of FLAC is that of the integers.
    whole = (file.format, file.subtype) == ("FLAC", "PCM_16")
    dtype = "int16" if whole else "float32"
    known = source.frames is not None and source.frames <= _BLOCK
    if not known:
        # soundfile seeks after each read, which fails where the length is unknown.
        file.seekable = lambda: False
    try:
        while True:
            size = -1 if known else _BLOCK
            block = file.read(size, dtype=dtype, always_2d=True)
            yield block
            if known or not len(block):
                return
    except (OSError, RuntimeError, ValueError) as error:
        raise Unusable(f"truncated or damaged ({error})") from None


def full_scale(samples: np.ndarray) -> float:
    """Return what to divide floats by: 1, or the full scale of integers among them.

    Raises:
        Unusable: They are too large for either, or a few stand far above the others.
    """
    levels = np.abs(samples)
    peak = float(levels.max())
    if peak <= _LOUDEST:
        return 1.0
    usual = float(np.quantile(levels, 0.99))
    for scale in _FULL_SCALES:
        if peak <= _OVERSHOOT * scale and 1 <= usual and peak <= _CREST * usual:
            return scale
    raise Unusable(
        f"absurd samples: the largest is {peak:.3g} where 1 is full scale, and 99 % "
        f"are below {usual:.3g}; damaged, or not of the type that its header says"
    )


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
        if size >= _UNKNOWN_BYTES:
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


def _check_sizes(source: Source) -> None:
    """Look for more bytes promised than there are: libsndfile goes by what is there."""
    log = source.file.extra_info
    sizes = [(int(said), int(there)) for said, there in _SIZES.findall(log)]
    if source.file.format == "NIST":
        with open(source.file.name, "rb") as handle:
            said = re.search(rb"sample_count -i (\d+)", handle.read(1024))
        sizes = [(int(said[1]), source.frames)] if said and source.frames else []
    for promised, there in sizes:
        if there + _SLOPPY < promised < _UNKNOWN_BYTES:
            raise Unusable(f"truncated: header promises {promised}, {there} there")
    if "truncated file" in log:
        raise Unusable("truncated: fewer samples than the header promises")


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
        if not head.startswith(b"OggS"):
            raise Unusable(f"damaged: no Ogg page at byte {position} of {len(data)}")
        sizes = data[position + 27 : position + 27 + head[-1]]
        size = 27 + head[-1] + sum(sizes)
        page = data[position : position + size]
        if len(head) < 27 or len(page) < size:
            raise Unusable("truncated: the last Ogg page is cut")
        flags, stream = page[5], page[14:18]
        number, checksum = struct.unpack("<II", page[18:26])
        if _ogg_checksum(page) != checksum:
            raise Unusable(f"damaged: Ogg page {number} does not match its checksum")
        if number != expected.get(stream, number):
            raise Unusable(f"damaged: Ogg pages are missing before page {number}")
        expected[stream] = number + 1
        position += size
    if not flags & 0x04:
        raise Unusable("truncated: the last Ogg page is missing")


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_checksum(page: bytes) -> int:
    # zlib's polynomial, with bits the other way round and nothing inverted.
    mirrored = (page[:22] + bytes(4) + page[26:]).translate(_MIRRORED)
    value = zlib.crc32(mirrored, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{value:032b}"[::-1], 2)


class _FlacSum:
    """The MD5 of all samples against that of the header."""

    def __init__(self, path: str) -> None:
        # STREAMINFO (RFC 9639, 8.2) comes first: bits of a sample, MD5 of all samples.
        with open(path, "rb") as handle:
            head = handle.read(42)
        self.bits = ((head[20] & 1) << 4 | head[21] >> 4) + 1
        self.promised = head[26:42]
        # float32 holds samples of up to 24 bits; a writer may leave the MD5 out.
        there = head[:4] == b"fLaC" and self.promised != bytes(16)
        self.usable = there and self.bits <= 24
        self.found, self.count = hashlib.md5(usedforsecurity=False), 0

    def update(self, samples: np.ndarray) -> None:
        """Take in samples as they are read: 16-bit integers, or floats."""
        if not self.usable:
            return
        self.count += len(samples)
        if samples.dtype == np.int16:
            raw = samples.astype("<i2", copy=False).tobytes()
        else:
            size = (self.bits + 7) // 8
            scale = np.float32(2 ** (self.bits - 1))
            integers = np.rint(samples * scale).astype("<i4")
            raw = integers.view(np.uint8).reshape(-1, 4)[:, :size].tobytes()
        self.found.update(raw)

    def compare(self) -> None:
        """Raise Unusable where the sums differ."""
        if self.usable and self.found.digest() != self.promised:
            raise Unusable(
                "header lies about the length, or samples are damaged: the MD5 of the "
                f"{self.count} samples is another than the header's"
            )
