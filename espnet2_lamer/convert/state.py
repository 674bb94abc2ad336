"""From the tensors of a file to a filled model: strict keys, whatever the format."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchaudio.models import Wav2Vec2Model

from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.foreign import check_weights

# Patterns for the beginning of a name, and what replaces it: ``None`` leaves it out.
Names = Sequence[tuple[str, str | None]]
# How torch named the two parts of a weight norm before parametrizations.
LEGACY_WEIGHT_NORM = {
    "conv.weight_g": "conv.parametrizations.weight.original0",
    "conv.weight_v": "conv.parametrizations.weight.original1",
}


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
        if value.layout is not torch.strided or value.is_meta:
            raise RecipeError(
                f"{source}: {key}: found a {value.layout} tensor on {value.device}, "
                "expected plain values"
            )
        yield key, value


def read_state(path: Path) -> dict[str, Tensor]:
    """Return a file's mapping of names to tensors; anything else is refused."""
    return dict(_named_tensors(check_weights(path, "cpu"), path))


def renamed(key: str, names: Names) -> str | None:
    """Replace what the first fitting pattern finds at the beginning of a name."""
    for pattern, new in names:
        if match := re.match(pattern, key):
            return None if new is None else match.expand(new) + key[match.end() :]
    return key


def _rename(state: Any, names: Names, source: object) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    used = {}
    left_out = set()
    for key, value in _named_tensors(state, source):
        name = renamed(key, names)
        if name is None:
            left_out.add(key.removesuffix(".weight").removesuffix(".bias"))
            continue
        if not value.is_floating_point():
            raise RecipeError(
                f"{source}: {key}: found {value.dtype}, expected floating-point numbers"
            )
        for legacy, current in LEGACY_WEIGHT_NORM.items():
            name = name.replace(legacy, current)
        if name in tensors:
            raise RecipeError(f"{source}: {key}: found twice, as {name}")
        tensors[name] = used[key] = value.detach()
    check_finite(used, source)
    if left_out:
        found = ", ".join(sorted(left_out))
        logging.info("%s: left out, no part of the network: %s", source, found)
    return tensors


def fill_hubert(
    architecture: dict[str, Any],
    state: Any,
    names: Names,
    mask_name: str | None,
    source: object,
    adapt: Callable[[Wav2Vec2Model], Any] = lambda model: None,
) -> Wav2Vec2Model:
    """Build the model and load every tensor of a checkpoint.

    ``state`` is what the file holds: a mapping of names to tensors. ``names`` lead to
    torchaudio's; under ``mask_name`` the mask embedding ``[D]`` is then, if anywhere.
    ``adapt`` puts into the model, in place, what its tensors have beside a HuBERT's.

    Raises:
        RecipeError: The architecture is impossible, or tensors are missing, unexpected,
            found twice, wrongly shaped or not of plain floating-point numbers.
    """
    tensors = _rename(state, names, source)
    mask_embedding = tensors.pop(mask_name, None)
    try:
        # Nothing is allocated before the sizes are known to be the file's own.
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            planned = build_hubert(architecture)
            adapt(planned)
        check_fit(planned.state_dict(), tensors, source)
        model = build_hubert(architecture)
        adapt(model)
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
            f"{'; '.join(problems[:8])}{more}"
        )


def check_finite(state: Mapping[str, Tensor], source: object) -> None:
    """Refuse tensors that hold NaN or infinity: all that is made with them would."""
    wrong = [
        key
        for key, value in state.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if wrong:
        raise RecipeError(
            f"{source}: {len(wrong)} of {len(state)} tensors hold NaN or infinite "
            f"values, e.g. {wrong[0]}; the file is damaged, or its conversion (to half "
            "precision) failed: fetch or convert it again"
        )
