"""Seeds derived from names, so that no draw depends on the order of the others."""

import hashlib


def seed_of(*parts: object) -> int:
    """Return a 60-bit seed made of ``parts``, the same on every platform and run."""
    text = "/".join(str(part) for part in parts)
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)
