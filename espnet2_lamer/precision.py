"""The precision of autocast: values of ``amp_dtype``, and what ``auto`` stands for."""

import argparse
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from espnet2_lamer.fileio.foreign import read_yaml

AUTO = "auto"
#: Values of ``amp_dtype`` and what autocast computes in; ``none`` is float32.
AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Values of oneDNN's ONEDNN_MAX_CPU_ISA under which it has no bf16 instructions.
_ISAS_WITHOUT_BF16 = set(
    "SSE41 AVX AVX2 AVX2_VNNI AVX2_VNNI_2 AVX512_CORE AVX512_CORE_VNNI".split()
)


def native_bf16(device: str) -> tuple[bool, str]:
    """Tell whether ``cpu`` or ``cuda`` (or one by number) computes bf16, and why.

    Without bf16 instructions a CPU converts every operand to float32 and back: the
    mini recipe's updates took 5 to 8 times as long as in float32.
    """
    if torch.device(device).type == "cuda":
        name = torch.cuda.get_device_name(device)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return True, f"{name} computes bf16"
        return False, f"{name} does not compute bf16"
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if limit in _ISAS_WITHOUT_BF16:
        return False, f"ONEDNN_MAX_CPU_ISA={limit} has no bf16 instructions"
    # Alone it also says yes where AVX-512 without bf16 instructions emulates them.
    mkldnn = torch.backends.mkldnn.is_available()
    if not (mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False, "this CPU has no bf16 instructions"
    for found, name in (
        (torch.cpu._is_amx_tile_supported(), "AMX"),
        (torch.cpu._is_avx512_bf16_supported(), "AVX-512 BF16"),
        (platform.machine() in ("aarch64", "arm64"), "bf16 instructions"),
    ):
        if found:
            return True, f"this CPU has {name}"
    return False, "this CPU has neither AVX-512 BF16 nor AMX"


def choose_amp_dtype(asked: str, device: str) -> str:
    """Return what ``auto`` stands for on ``cpu`` or ``cuda``, and say so; others stay.

    bf16 that the device only emulates is warned about.
    """
    if asked not in (AUTO, "bf16"):
        return asked
    native, reason = native_bf16(device)
    if asked == AUTO:
        found = "bf16" if native else "none"
        logging.info("amp_dtype: auto is %s here: %s", found, reason)
        return found
    if not native:
        logging.warning(
            "amp_dtype: bf16 is emulated here (%s), which takes 5 to 8 times as long "
            "as float32; amp_dtype: auto or none avoids it",
            reason,
        )
    return asked


def settle_amp_dtype(args: argparse.Namespace) -> str | None:
    """Replace ``args.amp_dtype: auto`` before a training starts.

    A training that is resumed goes on in the precision that its ``config.yaml``
    records, wherever it runs now; ESPnet writes there what is settled here.

    Returns:
        The recorded precision of a training that is resumed, else ``None``; the caller
        decides what becomes of one that differs from what was asked for by hand.
    """
    recorded = None
    config = Path(args.output_dir or "") / "config.yaml"
    if args.resume and args.output_dir is not None and config.is_file():
        found = read_yaml(config).get("amp_dtype")
        recorded = found if found in AMP_DTYPES else None
    if args.amp_dtype == AUTO and recorded is not None:
        logging.info("amp_dtype: %s, in which this training began", recorded)
        args.amp_dtype = recorded
    args.amp_dtype = choose_amp_dtype(args.amp_dtype, _device(args))
    return recorded


def settled_amp_dtype(args: argparse.Namespace) -> str:
    """Return the precision of a model to build, also where no training settled it."""
    found = getattr(args, "amp_dtype", "none")
    return choose_amp_dtype(found, _device(args)) if found == AUTO else found


def _device(args: argparse.Namespace) -> str:
    return "cuda" if getattr(args, "ngpu", 0) else "cpu"


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch on one thread: sums then come in one order, whatever the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Let a GPU multiply in float32, not in the shorter TF32, and always alike.

    torch's default allows TF32 in convolutions: features would differ from a CPU's by
    a thousandth instead of a millionth.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
