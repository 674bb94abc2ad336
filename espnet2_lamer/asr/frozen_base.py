"""A frozen base in a model that trains: left out of checkpoints, known by its hash."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from espnet2_lamer.errors import RecipeError


class FrozenBase(nn.Module):
    """Keep tensors that come from a file, and do not train, out of checkpoints.

    A checkpoint then holds the rest and the SHA-256 of that file. Loading one fails,
    whatever the loader, where the file was not given or is another one, or where
    tensors are missing or too many.

    Subclasses call :meth:`set_base` when they are complete. ``base_is_external`` says
    whether checkpoints leave the base out; with ``write_base`` they hold it anyway.
    """

    def set_base(
        self,
        option: str,
        sha256: str | None,
        base: Iterable[Tensor],
        guard: str,
        hash_name: str,
        hash_dtype: torch.dtype,
    ) -> None:
        """Say which tensors are the base's.

        ``option``, ``<part>_conf.<key>``, names the file, whose hash has a number per
        byte; without ``sha256`` checkpoints hold everything. ``guard`` is the key of a
        tensor. Where a checkpoint leaves the base out, it holds an empty one under this
        name: loaders that know nothing of bases, ESPnet's with ``strict=False``
        included, fail on its shape instead of keeping random weights.
        """
        ours = {id(tensor) for tensor in base}
        state = self.state_dict(keep_vars=True)
        self._base_keys = {name for name, tensor in state.items() if id(tensor) in ours}
        self.base_option, self.guard, self.hash_name = option, guard, hash_name
        self.base_is_external = sha256 is not None
        self.write_base = False
        digest = None
        if sha256 is not None:
            digest = torch.tensor(list(bytes.fromhex(sha256)), dtype=hash_dtype)
        self.register_buffer(hash_name, digest)
        self.register_state_dict_post_hook(_drop_base)
        self.register_load_state_dict_pre_hook(_fill_base)

    def base_keys(self) -> set[str]:
        """State keys, relative to this module, that the base's file provides."""
        return self._base_keys if self.base_is_external else set()

    @property
    def base_hash(self) -> str:
        """SHA-256 of the base's file, empty without one."""
        return digest_hex(getattr(self, self.hash_name))

    def full_state(self) -> dict[str, Tensor]:
        """Return every tensor of this module, the base's included."""
        before, self.write_base = self.write_base, True
        try:
            return self.state_dict()
        finally:
            self.write_base = before

    def drop_base_hash(self) -> None:
        """From here on write the base's own tensors, and no hash of a file."""
        self.base_is_external = False
        self.register_buffer(self.hash_name, None)


def digest_hex(digest: Tensor | None) -> str:
    """Write a hash that is kept as a number per byte; empty without one."""
    return "" if digest is None else bytes(map(int, digest.tolist())).hex()


def _drop_base(module: FrozenBase, state: dict, prefix: str, metadata: Any) -> None:
    if module.base_is_external and not module.write_base:
        for key in module.base_keys():
            state.pop(prefix + key, None)
        state[prefix + module.guard] = torch.empty(0)


def _fill_base(module: FrozenBase, state: dict, prefix: str, *_: Any) -> None:
    """Check the base's identity and supply its tensors, or fail loudly.

    ESPnet loads with ``strict=False``; without this, a checkpoint that lacks the base
    would silently evaluate random weights.
    """
    option = module.base_option
    conf = option.partition(".")[0]
    part = conf.removesuffix("_conf")
    own = module.full_state()
    found = digest_hex(state.get(prefix + module.hash_name))
    if module.base_is_external and found not in ("", module.base_hash):
        raise RecipeError(
            f"{option}: the checkpoint was trained on a base with SHA-256 {found}, "
            f"found one with {module.base_hash}; give the base it was trained on, the "
            "same file"
        )
    guard = state.get(prefix + module.guard)
    if guard is not None and not guard.numel():
        del state[prefix + module.guard]
    for key in module.base_keys():
        state.setdefault(prefix + key, own[key].detach())
    if not module.base_is_external:
        # A full export: it carries the base, the hash is information only.
        state.pop(prefix + module.hash_name, None)
    known = {prefix + key for key in own}
    missing = sorted(known - state.keys())
    if missing:
        raise RecipeError(
            f"the checkpoint lacks {len(missing)} tensors of the {part}, e.g. "
            f"{missing[0]}; it needs the base it was trained on: set {option}, or use "
            f"an exported (full) model; the rest of {conf} must be what it was trained "
            "with, too"
        )
    others = sorted(key for key in state if key.startswith(prefix) and key not in known)
    if others:
        raise RecipeError(
            f"the checkpoint has {len(others)} tensors that the {part} lacks, e.g. "
            f"{others[0]}; {conf} is not the one it was trained with"
        )
