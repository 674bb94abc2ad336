"""Test environment: few threads, caches in a temporary directory, no network."""

import ipaddress
import os
import re
import shutil
import socket
import tempfile
from pathlib import Path

# Everything here must happen before a test module imports torch, matplotlib or a hub
# client, hence at import time; pytest loads this file first.
_SCRATCH = Path(tempfile.mkdtemp(prefix="espnet2_lamer-tests-"))

# Tests are small: a second thread costs more than it brings.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# As the commands do: threads that wait sleep, or a busy machine takes an hour.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.update(
    HF_HUB_OFFLINE="1",
    XDG_CACHE_HOME=str(_SCRATCH / "cache"),
    HF_HOME=str(_SCRATCH / "huggingface"),
    TORCH_HOME=str(_SCRATCH / "torch"),
    MPLCONFIGDIR=str(_SCRATCH / "matplotlib"),
    MPLBACKEND="Agg",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.pop("NLTK_DATA", None)

import pytest  # noqa: E402

from espnet2_lamer.compat import before_espnet  # noqa: E402

before_espnet()


def _is_local(address: object) -> bool:
    """Whether a socket address stays on this machine (Unix sockets do)."""
    if not isinstance(address, tuple):
        return True
    host = address[0]
    if isinstance(host, bytes):
        host = host.decode()
    if host in ("", "localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _guard(function):
    def guarded(self, address, *args):
        if not _is_local(address):
            raise RuntimeError(f"a test tried to reach {address!r}; tests are offline")
        return function(self, address, *args)

    return guarded


def pytest_configure(config):
    if not _wants_gpu(config):
        # Whatever the machine has, these tests are the CPU's. Twice: ESPnet takes one
        # number for the rank of a process, and no number for a fault.
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1,-1"
    socket.socket.connect = _guard(socket.socket.connect)
    socket.socket.connect_ex = _guard(socket.socket.connect_ex)
    resolve = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        if host is not None and not _is_local((host,)):
            raise RuntimeError(f"a test tried to look up {host!r}; tests are offline")
        return resolve(host, *args, **kwargs)

    socket.getaddrinfo = getaddrinfo


def _wants_gpu(config):
    return re.search(r"(?<!not )\bgpu\b", config.option.markexpr) is not None


def pytest_collection_modifyitems(config, items):
    """Skip tests that need more GPUs than this run has."""
    marked = [(item, item.get_closest_marker("gpu")) for item in items]
    marked = [(item, marker) for item, marker in marked if marker]
    if not marked:
        return
    import torch

    found = torch.cuda.device_count()
    where = "torch finds" if _wants_gpu(config) else "run with -m gpu; here are"
    for item, marker in marked:
        needed = marker.args[0] if marker.args else 1
        if found < needed:
            reason = f"needs {needed} GPU(s): {where} {found}"
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_unconfigure(config):
    shutil.rmtree(_SCRATCH, ignore_errors=True)
