"""One audio file: opened, decoded, and checked against what its container says."""

import hashlib
import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

# libsndfile gives a length near 2^63 where a stream does not say it.
_UNKNOWN = 1 << 48
# Longer files are read in blocks: a damaged header may promise any length.
_BLOCK = 1 << 24
# One MPEG frame: encoders count their frames in two ways.
_MP3_SLACK = 1152
# Layer III bit rates in kbit/s by index, and sampling rates (ISO/IEC 11172-3, 13818-3).
_KBITS_MPEG1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_MPEG2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_HERTZ = (44100, 48000, 32000)
# Version bits: 3 is MPEG-1; 2 halves the sampling rate, 0 (MPEG-2.5) quarters it.
_DIVISORS = {3: 1, 2: 2, 0: 4}
_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3")
_MOST_PADDING = 4096


class Unusable(Exception):
    """A file that cannot be used; the message says why."""


@dataclass(frozen=True)
class Source:
    """An open audio file."""

    file: Any  # soundfile.SoundFile
    frames: int | None  # samples per channel, where the container says it


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
            yield Source(file, frames)


def _compare_lengths(stated: int, samples: int) -> None:
    if abs(stated - samples) > 2 * _MP3_SLACK:
        raise Unusable(
            f"header lies about the length: by it {stated} samples, {samples} by the "
            "MPEG frames"
        )


def duration(source: Source) -> float:
    """Return the length in seconds; the file is read where its container is silent."""
    frames = len(_read(source)) if source.frames is None else source.frames
    return frames / source.file.samplerate


def decode(source: Source, check: bool = True) -> np.ndarray:
    """Return all samples, float32 ``[frames, channels]``, after checking the file.

    Found are: fewer samples than the container promises (all formats), more (WAV with
    bytes after its samples that are no chunk; FLAC by its MD5; MP3, see :func:`scan`),
    missing or damaged pages (Ogg), damaged FLAC frames, NaN and infinite samples. Not
    found are changed samples and a wrong sampling rate of a WAV file, which has no
    checksum, and what :func:`scan` cannot see.

    Without ``check`` only what libsndfile and NaN show.

    Raises:
        Unusable: The file is damaged, has no samples, or holds NaN.
    """
    kind, path = source.file.format, source.file.name
    if check and kind in ("WAV", "WAVEX"):
        _check_wav(path)
    elif check and kind == "OGG":
        _check_ogg(path)
    samples = _read(source)
    slack = _MP3_SLACK if kind == "MP3" else 0
    if source.frames is not None and len(samples) < source.frames - slack:
        raise Unusable(
            f"truncated: header promises {source.frames} samples, {len(samples)} "
            "readable"
        )
    if len(samples) == 0:
        raise Unusable("no samples (zero length)")
    if check and kind == "FLAC":
        _check_flac(path, samples)
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / np.float32(1 << 15)
    if not np.isfinite(samples).all():
        raise Unusable("holds NaN or infinite samples")
    return samples


def _read(source: Source) -> np.ndarray:
    file, blocks = source.file, []
    # The MD5 of FLAC is that of the integers.
    whole = (file.format, file.subtype) == ("FLAC", "PCM_16")
    dtype = "int16" if whole else "float32"
    try:
        if source.frames is not None and source.frames <= _BLOCK:
            return file.read(dtype=dtype, always_2d=True)
        # soundfile seeks after each read, which fails where the length is unknown.
        file.seekable = lambda: False
        while len(block := file.read(_BLOCK, dtype=dtype, always_2d=True)):
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


@dataclass(frozen=True)
class Mp3:
    """What the frames of an MP3 file say."""

    start: int  # byte of the first frame with audio
    frames: int  # whole frames with audio
    samples: int  # in these, per channel
    # Of these, what the header says the encoder added (its delay, and padding at the
    # end); decoders leave it out.
    trimmed: int
    stated: int | None  # frames by the Xing, Info or VBRI header, if there is one
    varying: bool  # the bit rate changes
    problem: str  # why the file cannot be whole, or empty


class _Frame(NamedTuple):
    size: int  # bytes
    kind: tuple[int, int]  # version and sampling rate: the same in a whole stream
    bit_rate: int
    side: int  # bytes of side information


def scan(data: bytes) -> Mp3 | None:
    """Walk over the frames of a layer III stream.

    Seen: a last frame that is cut, bytes between frames that belong to none, and a
    header whose count is not that of the frames. One more or less is let pass, since
    some programs count the header's own frame. Not seen: a stream without such a header
    that was cut exactly between two frames, and damage that leaves the four bytes at
    the start of each frame alone.

    Returns:
        None where frames cannot be walked (other layers, free format).
    """
    position = _skip_id3(data)
    position += len(data[position:]) - len(data[position:].lstrip(b"\0"))
    head = data[position : position + 4]
    first = _frame(head)
    if first is None:
        if len(head) == 4 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
            return None
        problem = "damaged: no MPEG frame at the start"
        return Mp3(position, 0, 0, 0, None, False, problem)
    stated, trimmed = _header(data[position : position + first.size], first.side)
    if stated is not None:
        position += first.size
        # A program that could not go back to fill it in left 0.
        stated = stated or None
    start, frames, bit_rates = position, 0, set()
    while (frame := _frame(data[position : position + 4])) and frame.kind == first.kind:
        if position + frame.size > len(data):
            break
        position += frame.size
        frames += 1
        bit_rates.add(frame.bit_rate)
    samples = frames * (1152 if first.kind[0] == 3 else 576)
    varying, problem = len(bit_rates) > 1, _problem(data[position:], frames, stated)
    return Mp3(start, frames, samples, trimmed, stated, varying, problem)


def with_length(data: bytes, stream: Mp3) -> bytes:
    """Return the stream with a Xing header that states the number of its frames.

    libsndfile takes the length of a stream without one from its size and the bit rate
    of its first frame, and reads no further, which cuts a stream of varying bit rate.
    With the header it leaves out the decoder's delay, 529 samples at the start.
    """
    header = struct.unpack(">I", data[stream.start : stream.start + 4])[0]
    # No checksum, no padding, and the lowest bit rate whose frame has room.
    header = (header | 1 << 16) & ~(1 << 9) & ~(15 << 12)
    for index in range(1, 15):
        head = struct.pack(">I", header | index << 12)
        frame = _frame(head)
        xing = struct.pack(">4sII", b"Xing", 1, stream.frames)
        body = head + bytes(frame.side) + xing
        if len(body) <= frame.size:
            break
    return body.ljust(frame.size, b"\0") + data[stream.start :]


def _skip_id3(data: bytes) -> int:
    position = 0
    while data[position : position + 3] == b"ID3" and len(data) >= position + 10:
        size = 0
        for byte in data[position + 6 : position + 10]:
            size = size << 7 | byte & 127
        position += 10 + size + (10 if data[position + 5] & 16 else 0)
    return position


@lru_cache(4096)
def _frame(head: bytes) -> _Frame | None:
    # 11 bits of sync, then two of version and two of layer (01 is III).
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    version, bit_rate, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version not in _DIVISORS or bit_rate in (0, 15) or rate == 3:
        return None
    hertz = _HERTZ[rate] // _DIVISORS[version]
    mono = head[3] >> 6 == 3
    if version == 3:
        size, side = 144 * 1000 * _KBITS_MPEG1[bit_rate] // hertz, 17 if mono else 32
    else:
        size, side = 72 * 1000 * _KBITS_MPEG2[bit_rate] // hertz, 9 if mono else 17
    return _Frame(size + (head[2] >> 1 & 1), (version, rate), bit_rate, side)


def _header(frame: bytes, side: int) -> tuple[int | None, int]:
    """Return the number of frames and of samples to leave out by a header.

    The first is 0 where the header says none, and None where the frame is no header.
    """
    # A checksum of two bytes may stand between the frame's header and the rest.
    for at in (4 + side, 6 + side):
        if frame[at : at + 4] in (b"Xing", b"Info"):
            flags, count = struct.unpack(">II", frame[at + 4 : at + 12])
            # Frames, bytes, table of contents and quality, where flagged; then LAME's
            # extension with delay and padding.
            sizes = enumerate((4, 4, 100, 4))
            at += 8 + sum(size for bit, size in sizes if flags >> bit & 1)
            added = int.from_bytes(frame[at + 21 : at + 24], "big")
            return count if flags & 1 else 0, (added >> 12) + (added & 0xFFF)
    if frame[36:40] == b"VBRI":
        return struct.unpack(">I", frame[50:54])[0], 0
    return None, 0


def _problem(rest: bytes, frames: int, stated: int | None) -> str:
    if stated is not None and abs(frames - stated) > 1:
        cut = "truncated or damaged"
        relation = cut if frames < stated else "lies about its length"
        return f"{relation}: header promises {stated} MPEG frames, {frames} there"
    complete = stated is not None and frames >= stated
    if complete or not rest or rest.startswith(_TAGS):
        return ""
    if _frame(rest[:4]) is not None:
        return "truncated: the last MPEG frame is cut"
    if _goes_on(rest):
        return f"damaged: MPEG frames are interrupted after the first {frames}"
    if len(rest) > _MOST_PADDING:
        return f"truncated or damaged: the last {len(rest)} bytes are no MPEG frames"
    return ""


def _goes_on(rest: bytes) -> bool:
    """Whether two frames in a row follow somewhere."""
    position = rest.find(b"\xff")
    while position >= 0:
        frame = _frame(rest[position : position + 4])
        following = position + frame.size if frame else 0
        if frame and _frame(rest[following : following + 4]):
            return True
        position = rest.find(b"\xff", position + 1)
    return False
