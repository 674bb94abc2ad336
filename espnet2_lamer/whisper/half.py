"""One half of Whisper inside an ESPnet model, and what its checkpoints leave out."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from whisper.model import AudioEncoder, TextDecoder

from espnet2_lamer.asr.frozen_base import FrozenBase
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.whisper.config import WhisperLoraConfig
from espnet2_lamer.whisper.load import (
    build_half,
    load_strictly,
    read_checkpoint,
    whisper_file,
)
from espnet2_lamer.whisper.lora import add_loras

BASE_HASH = "whisper_sha256"
MULTILINGUAL_VOCABULARY = 51865  # the smallest


def read_half(
    side: str, whisper: str | None, dims: Mapping[str, int] | None
) -> tuple[AudioEncoder | TextDecoder, dict[str, int], str | None]:
    """Build the encoder or the decoder of a Whisper.

    Args:
        side: ``"encoder"`` or ``"decoder"``.
        whisper: Name or path of the weights.
        dims: Dimensions of one with random weights, used without ``whisper``.

    Returns:
        The module, Whisper's dimensions, and the SHA-256 of its file, or ``None``.

    Raises:
        RecipeError: Neither or an impossible one is given.
    """
    if whisper is None and dims is None:
        raise RecipeError(
            f"{side}_conf.whisper: found null, expected a name or path, or dims"
        )
    digest = None
    try:
        if whisper is None:
            half = build_half(side, dims)
        else:
            path = whisper_file(whisper)
            dims, state = read_checkpoint(path)
            half = build_half(side, dims)
            prefix = f"{side}."
            own = {
                key.removeprefix(prefix): value
                for key, value in state.items()
                if key.startswith(prefix)
            }
            load_strictly(half, own, path)
            digest = _digest(path, path.stat().st_mtime_ns)
    except RecipeError as error:
        raise RecipeError(f"{side}_conf.whisper: {error}") from error
    if dims["n_vocab"] < MULTILINGUAL_VOCABULARY:
        raise RecipeError(
            f"{side}_conf.whisper: found an English-only model ({dims['n_vocab']} "
            "tokens), expected a multilingual one"
        )
    return half, dict(dims), digest


@lru_cache(maxsize=4)
def _digest(path: Path, modified: int) -> str:
    return sha256_file(path)


def make_config(side: str, lora: Mapping[str, Any] | None) -> WhisperLoraConfig:
    """Read ``encoder_conf.lora`` or ``decoder_conf.lora``.

    Raises:
        RecipeError: With the key, what was found and what is expected.
    """
    try:
        return WhisperLoraConfig(**(lora or {"method": "frozen"}))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{side}_conf.{error}") from error


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
        self.config = make_config(side, lora)
        self.whisper, self.dims, digest = read_half(side, whisper, dims)
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
