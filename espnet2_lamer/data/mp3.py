"""MP3 files, frame by frame: what they hold, and what their headers leave out."""

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

# Layer III bit rates in kbit/s by index, and sampling rates (ISO/IEC 11172-3, 13818-3).
_KBITS_MPEG1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_MPEG2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_HERTZ = (44100, 48000, 32000)
# Version bits: 3 is MPEG-1; 2 halves the sampling rate, 0 (MPEG-2.5) quarters it.
_DIVISORS = {3: 1, 2: 2, 0: 4}
_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3")
_MOST_PADDING = 4096


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
