"""Writers that are really killed, for tests of what they leave."""

import os
import signal
from pathlib import Path

from espnet2_lamer.fileio import atomic


def killed_in(writer, path: Path) -> Path:
    """Kill a process inside ``writer(path)``; returns what it left, 4 bytes in it.

    Args:
        writer: ``atomic_path`` or ``atomic_dir``.
        path: What it was to write.
    """
    before = set(path.parent.iterdir()) if path.parent.is_dir() else set()
    pid = os.fork()
    if not pid:
        with writer(path) as temporary:
            file = temporary / "part" if temporary.is_dir() else temporary
            file.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    # What this process has seen of the folder is of before.
    atomic._remove_leftovers.cache_clear()
    (left,) = set(path.parent.iterdir()) - before
    return left
