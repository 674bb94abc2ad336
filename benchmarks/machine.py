"""What a measurement ran on, in a few lines."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
# Instructions that decide how fast bf16 is.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def _field(path: str, name: str) -> str:
    """Value of the first ``name: value`` line of a file under /proc, or ``""``."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def available_memory() -> int:
    """Bytes that a new process could use."""
    kib = _field("/proc/meminfo", "MemAvailable").removesuffix("kB").strip()
    return int(kib or 0) * 1024


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return f", commit {git('rev-parse', '--short', 'HEAD')}" + (
            " with changes" if changed else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return ""


def describe(device: str) -> dict[str, str]:
    """Return lines for a report: machine, software, date.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    flags = _field("/proc/cpuinfo", "flags").split()
    found = [name for name in INSTRUCTIONS if name in flags]
    cpu = _field("/proc/cpuinfo", "model name") or platform.processor()
    memory = int(_field("/proc/meminfo", "MemTotal").removesuffix("kB").strip() or 0)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    versions = [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("torch", "torchaudio", "espnet", "espnet2-lamer")
    ]
    return {
        "measured on": f"GPU ({gpu})" if device == "cuda" else "CPU",
        "machine": (
            f"{cpu} ({', '.join(found)}), {len(os.sched_getaffinity(0))} logical "
            f"cores, {torch.get_num_threads()} threads used, "
            f"{memory / 2**20:.0f} GiB RAM, GPU: {gpu}, load when it began: "
            f"{os.getloadavg()[0]:.1f}"
        ),
        "software": f"Python {platform.python_version()}, "
        + ", ".join(versions)
        + _commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
