"""Read a CTranslate2 Whisper file and name its tensors as openai-whisper does.

The file is, little-endian: u32 version, length-prefixed name of the model's kind, u32
revision, u32 number of tensors; then per tensor its u16-length name, u8 rank, u32
dimensions, u8 dtype, u32 bytes, data. Strings end with a zero byte that their length
counts. Aliases of tensors may follow; Whisper needs none of them.
"""

import struct
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from espnet2_lamer.errors import RecipeError

KIND = "WhisperSpec"
VERSION = 6
# CTranslate2's numbers of data types; integers other than scalars mean quantisation.
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
MAX_RANK = 4
HEAD_WIDTH = 64  # of every Whisper


@dataclass
class _Reader:
    data: bytes
    path: Path
    position: int = 0

    def take(self, size: int, what: str) -> bytes:
        end = self.position + size
        if end > len(self.data):
            raise RecipeError(
                f"{self.path}: damaged: {what} needs {size} bytes at "
                f"{self.position}, found {len(self.data) - self.position}; download "
                "it again"
            )
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def number(self, form: str, what: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def string(self, what: str) -> str:
        raw = self.take(self.number("<H", what), what)
        try:
            return raw.rstrip(b"\0").decode("ascii")
        except UnicodeDecodeError as error:
            raise RecipeError(
                f"{self.path}: damaged: {what} is no text ({error})"
            ) from error


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Read every tensor of a CTranslate2 Whisper file.

    Args:
        path: ``model.bin``.

    Returns:
        Arrays by CTranslate2's names, in the file's types.

    Raises:
        RecipeError: Another kind of file, or a damaged one.
    """
    path = Path(path)
    reader = _Reader(path.read_bytes(), path)
    version = reader.number("<I", "the version")
    kind = reader.string("the kind of model") if version == VERSION else ""
    if kind != KIND:
        raise RecipeError(
            f"{path}: found version {version} {kind!r}, expected a CTranslate2 file of "
            f"version {VERSION}, {KIND!r}"
        )
    reader.number("<I", "the revision")
    tensors: dict[str, np.ndarray] = {}
    for index in range(reader.number("<I", "the number of tensors")):
        name = reader.string(f"the name of tensor {index}")
        rank = reader.number("<B", f"the rank of {name}")
        if rank > MAX_RANK or name in tensors:
            raise RecipeError(
                f"{path}: damaged: tensor {name!r} has rank {rank} or occurs twice"
            )
        shape = [reader.number("<I", f"the shape of {name}") for _ in range(rank)]
        code = reader.number("<B", f"the type of {name}")
        size = reader.number("<I", f"the size of {name}")
        if code not in DTYPES:
            raise RecipeError(
                f"{path}: tensor {name!r} has type {code}, expected one of "
                f"{sorted(DTYPES)}"
            )
        dtype = np.dtype(DTYPES[code]).newbyteorder("<")
        if size != prod(shape) * dtype.itemsize:
            raise RecipeError(
                f"{path}: damaged: tensor {name!r} has {size} bytes, expected "
                f"{prod(shape) * dtype.itemsize} for shape {shape}"
            )
        raw = reader.take(size, f"tensor {name}")
        tensors[name] = np.frombuffer(raw, dtype).reshape(shape)
    return tensors


def to_openai(tensors: dict[str, np.ndarray], path: str | Path) -> dict:
    """Rename and split CTranslate2's tensors.

    CTranslate2 stacks query, key and value and gives the key a bias of zeros, which
    Whisper lacks.

    Args:
        tensors: What :func:`read_tensors` returns.
        path: Named in errors.

    Returns:
        ``{"dims": ..., "model_state_dict": ...}`` as openai-whisper's files, in the
        precision that the tensors have.

    Raises:
        RecipeError: A tensor is missing, quantised or of an unexpected shape.
    """
    from whisper.model import ModelDimensions

    from espnet2_lamer.whisper.half import build_half

    source = _Source(tensors, Path(path))
    layers = {side: _count_layers(tensors, side) for side in ("encoder", "decoder")}
    state = _ends(source)
    for side, count in layers.items():
        for index in range(count):
            old, new = f"{side}/layer_{index}", f"{side}.blocks.{index}"
            state |= _self_attention(source, f"{old}/self_attention", new)
            if side == "decoder":
                state |= _cross_attention(source, f"{old}/attention", new)
            state |= source.norm(f"{old}/ffn/layer_norm", f"{new}.mlp_ln")
            for linear, place in ((0, 0), (1, 2)):
                state |= source.linear(
                    f"{old}/ffn/linear_{linear}", f"{new}.mlp.{place}"
                )
    audio_context, width = state["encoder.positional_embedding"].shape
    vocabulary = state["decoder.token_embedding.weight"].shape[0]
    dims = ModelDimensions(
        n_mels=state["encoder.conv1.weight"].shape[1],
        n_audio_ctx=audio_context,
        n_audio_state=width,
        n_audio_head=width // HEAD_WIDTH,
        n_audio_layer=layers["encoder"],
        n_vocab=vocabulary,
        n_text_ctx=state["decoder.positional_embedding"].shape[0],
        n_text_state=width,
        n_text_head=width // HEAD_WIDTH,
        n_text_layer=layers["decoder"],
    )
    with torch.device("meta"):
        expected = {
            f"{side}.{name}": value.shape
            for side in layers
            for name, value in build_half(side, asdict(dims)).state_dict().items()
        }
    found = {key: value.shape for key, value in state.items()}
    if found != expected:
        wrong = sorted(
            key for key in found | expected if found.get(key) != expected.get(key)
        )
        raise RecipeError(
            f"{path}: {len(wrong)} tensors do not fit a Whisper of {dims}, e.g. "
            f"{wrong[0]}: found {found.get(wrong[0])}, expected "
            f"{expected.get(wrong[0])}"
        )
    return {"dims": asdict(dims), "model_state_dict": state}


def _count_layers(tensors: dict[str, np.ndarray], side: str) -> int:
    prefix = f"{side}/layer_"
    numbers = {name.removeprefix(prefix).partition("/")[0] for name in tensors}
    return sum(number.isdigit() for number in numbers)


@dataclass
class _Source:
    tensors: dict[str, np.ndarray]
    path: Path

    def get(self, name: str) -> Tensor:
        array = self.tensors.get(name)
        if array is None or array.dtype not in (np.float16, np.float32):
            found = "nothing" if array is None else f"{array.dtype} (quantised)"
            raise RecipeError(
                f"{self.path}: tensor {name!r}: found {found}, expected float16 or "
                "float32"
            )
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))

    def linear(self, old: str, new: str) -> dict[str, Tensor]:
        return {
            f"{new}.weight": self.get(f"{old}/weight"),
            f"{new}.bias": self.get(f"{old}/bias"),
        }

    def norm(self, old: str, new: str) -> dict[str, Tensor]:
        return {
            f"{new}.weight": self.get(f"{old}/gamma"),
            f"{new}.bias": self.get(f"{old}/beta"),
        }

    def stacked(self, old: str, new: str, names: tuple[str, ...]) -> dict[str, Tensor]:
        weight, bias = self.get(f"{old}/weight"), self.get(f"{old}/bias")
        if weight.shape[0] % len(names) or bias.shape[0] != weight.shape[0]:
            raise RecipeError(
                f"{self.path}: {old}: found shapes {list(weight.shape)} and "
                f"{list(bias.shape)}, expected {len(names)} stacked matrices"
            )
        state: dict[str, Tensor] = {}
        for name, w, b in zip(
            names, weight.chunk(len(names)), bias.chunk(len(names)), strict=True
        ):
            # Clones: a slice would take the whole stack into the saved file.
            state[f"{new}.{name}.weight"] = w.clone()
            if name != "key":
                state[f"{new}.{name}.bias"] = b.clone()
        return state


def _ends(source: _Source) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for conv in ("conv1", "conv2"):
        state |= source.linear(f"encoder/{conv}", f"encoder.{conv}")
    for side in ("encoder", "decoder"):
        state[f"{side}.positional_embedding"] = source.get(
            f"{side}/position_encodings/encodings"
        )
    state["decoder.token_embedding.weight"] = source.get("decoder/embeddings/weight")
    state |= source.norm("encoder/layer_norm", "encoder.ln_post")
    return state | source.norm("decoder/layer_norm", "decoder.ln")


def _self_attention(source: _Source, old: str, new: str) -> dict[str, Tensor]:
    return {
        **source.stacked(f"{old}/linear_0", f"{new}.attn", ("query", "key", "value")),
        **source.linear(f"{old}/linear_1", f"{new}.attn.out"),
        **source.norm(f"{old}/layer_norm", f"{new}.attn_ln"),
    }


def _cross_attention(source: _Source, old: str, new: str) -> dict[str, Tensor]:
    return {
        **source.linear(f"{old}/linear_0", f"{new}.cross_attn.query"),
        **source.stacked(f"{old}/linear_1", f"{new}.cross_attn", ("key", "value")),
        **source.linear(f"{old}/linear_2", f"{new}.cross_attn.out"),
        **source.norm(f"{old}/layer_norm", f"{new}.cross_attn_ln"),
    }
