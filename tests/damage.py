"""Damage as disks do it."""

import random
from pathlib import Path


def flip_bit(path: Path, seed: int) -> None:
    """Flip one random bit of a file."""
    content = bytearray(path.read_bytes())
    bit = random.Random(seed).randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
