"""From the tensors of a file to a filled model: strict keys, whatever the format."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchaudio.models import Wav2Vec2Model

from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.errors import RecipeError, short_reason
from espnet2_lamer.fileio.checksum import check_file

# How torch named the two parts of a weight norm before parametrizations.
LEGACY_WEIGHT_NORM = {
    "conv.weight_g": "conv.parametrizations.weight.original0",
    "conv.weight_v": "conv.parametrizations.weight.original1",
}


def read_tensors(path: Path) -> Any:
    """Return what ``torch.save`` wrote, tensors and plain containers only.

    Raises:
        RecipeError: It is damaged, by the checksum beside it if there is one, or holds
            anything else.
    """
    check_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways
        raise RecipeError(f"{path}: cannot be read ({short_reason(error)})") from error


def _named_tensors(state: Any, source: object) -> Iterator[tuple[str, Tensor]]:
    """Yield what a state dict holds, or refuse what is none."""
    if not isinstance(state, Mapping):
        raise RecipeError(
            f"{source}: found {type(state).__name__}, expected a mapping of parameter "
            "names to tensors"
        )
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise RecipeError(
                f"{source}: {key}: found {type(value).__name__}, expected a tensor "
                "under a parameter's name"
            )
        yield key, value


def read_state(path: Path) -> dict[str, Tensor]:
    """Return a file's mapping of names to tensors; anything else is refused."""
    state = dict(_named_tensors(read_tensors(path), path))
    for key, value in state.items():
        if value.layout is not torch.strided or value.is_meta:
            raise RecipeError(
                f"{path}: {key}: found a {value.layout} tensor on {value.device}, "
                "expected plain values"
            )
    return state


def replace_prefix(name: str, prefixes: Iterable[tuple[str, str]]) -> str:
    """Put the second of the first pair that fits in place of its first."""
    for old, new in prefixes:
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def _rename(
    state: Any, new_name: Callable[[str], str | None], source: object
) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for key, value in _named_tensors(state, source):
        name = new_name(key)
        if name is None:
            continue
        if not value.is_floating_point() or value.layout is not torch.strided:
            raise RecipeError(
                f"{source}: {key}: found {value.dtype} ({value.layout}), expected "
                "floating-point numbers in a plain tensor"
            )
        for legacy, current in LEGACY_WEIGHT_NORM.items():
            name = name.replace(legacy, current)
        if name in renamed:
            raise RecipeError(f"{source}: {key}: found twice, as {name}")
        renamed[name] = value.detach()
    return renamed


def fill_hubert(
    architecture: dict[str, Any],
    state: Any,
    new_name: Callable[[str], str | None],
    mask_name: str | None,
    source: object,
) -> Wav2Vec2Model:
    """Build the model and load every tensor of a checkpoint.

    Args:
        architecture: For :func:`build_hubert`.
        state: What the file holds: a mapping of names to tensors.
        new_name: Maps a name of the file to torchaudio's; ``None`` leaves it out.
        mask_name: What ``new_name`` calls the mask embedding ``[D]``, if anything.
        source: For error messages.

    Raises:
        RecipeError: The architecture is impossible, or tensors are missing, unexpected,
            found twice, wrongly shaped or not of plain floating-point numbers.
    """
    tensors = _rename(state, new_name, source)
    mask_embedding = tensors.pop(mask_name, None)
    try:
        # Nothing is allocated before the sizes are known to be the file's own.
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            planned = build_hubert(architecture)
        check_fit(planned.state_dict(), tensors, source)
        model = build_hubert(architecture)
    except RecipeError:
        raise
    except Exception as error:  # torch's constructors check little
        raise RecipeError(
            f"{source}: no HuBERT can be built with {architecture}: {error}"
        ) from error
    model.load_state_dict(tensors)
    if mask_embedding is not None:
        expected = (model.architecture["encoder_embed_dim"],)
        if tuple(mask_embedding.shape) != expected:
            raise RecipeError(
                f"{source}: mask embedding: found shape {tuple(mask_embedding.shape)}, "
                f"expected {expected}"
            )
        model.mask_embedding = mask_embedding.detach().float().clone()
    return model


def check_fit(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: object
) -> None:
    """Refuse tensors that are missing, unexpected or wrongly shaped, by name."""
    problems = [f"missing {key}" for key in sorted(set(expected) - set(state))]
    problems += [f"unexpected {key}" for key in sorted(set(state) - set(expected))]
    problems += [
        f"{key}: found shape {tuple(state[key].shape)}, expected "
        f"{tuple(expected[key].shape)}"
        for key in sorted(set(expected) & set(state))
        if expected[key].shape != state[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise RecipeError(
            f"{source}: the checkpoint does not fit the model: "
            + "; ".join(problems[:8])
            + more
        )
