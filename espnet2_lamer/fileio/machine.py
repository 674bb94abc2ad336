"""The machine a run was made on, in a few words."""

import platform
import re
from pathlib import Path


def describe_machine(device: str = "cpu") -> str:
    """Return processor and cores, and GPUs where ``device`` is ``"cuda"``.

    No host name, which says nothing to others.
    """
    from joblib import cpu_count

    model, info = platform.machine(), Path("/proc/cpuinfo")
    if info.is_file():
        text = info.read_text(encoding="utf-8")
        found = re.search(r"^model name\s*:(.*)", text, re.MULTILINE)
        model = found[1].strip() if found else model
    said = f"{model}, {cpu_count()} cores"
    if device == "cuda":
        import torch

        said += f", {torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return said
