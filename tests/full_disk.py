"""Disks that are full, by the system's own word: no write is patched.

Two kinds. A small file system in memory is the thing itself, and needs the right to
mount one. A limit of file sizes works for everybody: the kernel refuses the same calls,
of whatever library, for files above it only.
"""

import contextlib
import os
import resource
import subprocess

import pytest

KINDS = ("small disk", "small files")
REASONS = {"small disk": "No space left on device", "small files": "File too large"}
_SIZE = 2**28


@contextlib.contextmanager
def mounted(folder):
    """An empty file system of 256 MB in ``folder``; skips where none can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", folder]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if done.returncode:
        pytest.skip(f"this user may not mount a file system: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def full(kind, folder, room):
    """Leave ``room`` bytes on a mounted file system, or in each file of this process.

    Args:
        kind: One of ``KINDS``.
        folder: On the mounted file system.
        room: Bytes; whole pages of 4096 on a disk.
    """
    if kind == "small files":
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        return
    filler = folder / "filler"
    with open(filler, "wb") as handle:
        # By what is open, not by name: no other disk may ever be filled.
        disk = os.fstatvfs(handle.fileno())
        if disk.f_blocks * disk.f_frsize != _SIZE:
            filler.unlink()
            raise RuntimeError(f"{folder}: not the file system mounted for this test")
        for _ in range(100):
            # Others may write at the same time.
            disk = os.fstatvfs(handle.fileno())
            with contextlib.suppress(OSError):
                free = disk.f_bavail * disk.f_frsize
                os.posix_fallocate(handle.fileno(), 0, free - room)
                break
    try:
        yield
    finally:
        filler.unlink(missing_ok=True)
