"""One half of Whisper inside an ESPnet model, and what its checkpoints leave out."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from whisper.model import AudioEncoder, TextDecoder

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


class WhisperHalf(nn.Module):
    """Whisper's own tensors, kept out of checkpoints while they are frozen.

    A checkpoint then holds what was added, and the SHA-256 of Whisper's file. Loading
    one fails, whatever the loader, where that file was not given, is another, or
    where tensors are missing or too many.

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
        self.own_names = self._names()
        add_loras(self.whisper, side, self.config)
        self.base_is_external = digest is not None and self.config.method != "full"
        self.write_base = False
        # Floats: ESPnet's average of checkpoints leaves them as they are, not integers.
        self.register_buffer(
            BASE_HASH,
            torch.tensor(list(bytes.fromhex(digest)), dtype=torch.float32)
            if self.base_is_external
            else None,
        )
        self.register_state_dict_post_hook(_drop_base)
        self.register_load_state_dict_pre_hook(_fill_base)

    def _names(self) -> set[str]:
        persistent = self.whisper.state_dict().keys()
        return {f"whisper.{name}" for name in persistent}

    def base_keys(self) -> set[str]:
        """State keys, relative to this module, that Whisper's file provides."""
        if not self.base_is_external:
            return set()
        names = [name for name, _ in self.named_parameters()]
        names += [name for name, _ in self.named_buffers()]
        return {n for n in names if n.replace(".base.", ".") in self.own_names}

    def drop_base_hash(self) -> None:
        """From here on write Whisper's own tensors, and no hash of a file."""
        self.base_is_external = False
        self.register_buffer(BASE_HASH, None)

    def full_state(self) -> dict[str, Tensor]:
        """Return every tensor of this module, Whisper's own included."""
        before, self.write_base = self.write_base, True
        try:
            return self.state_dict()
        finally:
            self.write_base = before

    @property
    def base_hash(self) -> str:
        """SHA-256 of Whisper's file, empty without one."""
        return _hex(getattr(self, BASE_HASH))

    @property
    def guard(self) -> str:
        """A tensor of every Whisper's half.

        Where a checkpoint leaves Whisper out, it holds an empty one under this name,
        so that loaders that do not ask for completeness fail on its shape.
        """
        norm = "ln_post" if self.side == "encoder" else "ln"
        return f"whisper.{norm}.weight"


def _hex(buffer: Tensor | None) -> str:
    return "" if buffer is None else bytes(map(int, buffer.tolist())).hex()


def _drop_base(module: WhisperHalf, state: dict, prefix: str, metadata: Any) -> None:
    if module.base_is_external and not module.write_base:
        for key in module.base_keys():
            state.pop(prefix + key, None)
        state[prefix + module.guard] = torch.empty(0)


def _fill_base(
    module: WhisperHalf,
    state: dict,
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list,
    unexpected: list,
    errors: list,
) -> None:
    """Check Whisper's identity and supply its tensors, or fail loudly."""
    own: dict[str, Tensor] = module.full_state()
    found = state.get(prefix + BASE_HASH)
    if module.base_is_external and _hex(found) not in ("", module.base_hash):
        raise RecipeError(
            f"{module.side}_conf.whisper: the checkpoint was trained on a Whisper with "
            f"SHA-256 {_hex(found)}, found one with {module.base_hash}; give the one "
            "it was trained on"
        )
    guard = state.get(prefix + module.guard)
    if guard is not None and not guard.numel():
        del state[prefix + module.guard]
    if module.base_is_external:
        for key in module.base_keys() | {BASE_HASH}:
            state.setdefault(prefix + key, own[key].detach())
    elif found is not None:
        # A packed model: it carries Whisper's tensors, the hash is information only.
        state.pop(prefix + BASE_HASH)
    known = {prefix + key for key in own}
    ours = {key for key in state if key.startswith(prefix)}
    for keys, what in ((known - ours, "lacks"), (ours - known, "has")):
        if keys:
            raise RecipeError(
                f"the checkpoint {what} {len(keys)} tensors of the {module.side}"
                f"{'' if what == 'lacks' else ' too many'}, e.g. {min(keys)}; "
                f"{module.side}_conf (whisper, lora.languages, method, targets) must "
                "be what it was trained with"
            )
