"""One expert in one safetensors file, apart from all others."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from espnet2_lamer.convert.state import check_fit
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path
from espnet2_lamer.whisper.lora import expert_linears, lora_names

FORMAT = "espnet2_lamer.whisper.expert"
NEW_TOKEN = "new_token"


def expert_state(model: nn.Module, language: str) -> dict[str, Tensor]:
    """Return the tensors of a LoRA by the path of the Linear they adapt.

    Raises:
        RecipeError: There is no such expert.
    """
    state: dict[str, Tensor] = {}
    for side in ("encoder", "decoder"):
        for path, linear in expert_linears(getattr(model, side).whisper).items():
            if language in linear.experts:
                for name, value in linear.adapter_parameters(language).items():
                    state[f"{side}.{path}.{name}"] = value
    if not state:
        raise RecipeError(
            f"no expert for language {language}, found experts for "
            f"{', '.join(lora_names(model)) or 'none'}"
        )
    if language in model.decoder.new_tokens:
        state[NEW_TOKEN] = model.decoder.new_tokens[language]
    return state


def _described(model: nn.Module, language: str) -> dict[str, str | float | dict]:
    config = model.encoder.config
    return {
        "language": language,
        "rank": config.rank,
        "alpha": float(config.rank if config.alpha is None else config.alpha),
        "targets": config.targets,
        "dims": model.encoder.dims,
        "whisper_sha256": model.encoder.base_hash,
    }


def save_expert(model: nn.Module, language: str, path: str | Path) -> None:
    """Write one expert, atomically; see :func:`expert_state`."""
    state = {
        name: value.detach().cpu().contiguous()
        for name, value in expert_state(model, language).items()
    }
    # One entry: safetensors writes several in an order that changes.
    described = json.dumps(_described(model, language), sort_keys=True)
    with atomic_path(path) as temporary:
        save_file(state, temporary, {FORMAT: described})


@torch.no_grad()
def load_expert(model: nn.Module, language: str, path: str | Path) -> None:
    """Read what :func:`save_expert` wrote into a model that has a place for it.

    Raises:
        RecipeError: The file is missing, no expert's, of another language, or does not
            fit the model.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(
            f"model_conf.experts.{language}: {path} not found; train the expert first"
        )
    own = expert_state(model, language)
    try:
        with safe_open(path, "pt") as file:
            found = dict(json.loads((file.metadata() or {}).get(FORMAT, "{}")))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, ValueError) as error:
        raise RecipeError(f"{path}: not a safetensors file ({error})") from error
    for key, value in _described(model, language).items():
        # Without the file of Whisper at hand there is no hash to compare.
        known = key != "whisper_sha256" or (value and found.get(key))
        if known and found.get(key) != value:
            raise RecipeError(
                f"{path}: {key}: found {found.get(key)!r}, expected {value!r}; the "
                "expert belongs to another model or configuration"
            )
    try:
        check_fit(own, state, path)
    except RecipeError as error:
        raise RecipeError(
            f"{error}; lora.encoder, lora.decoder and language_tokens must be what it "
            "was trained with"
        ) from error
    for name, value in state.items():
        own[name].copy_(value)


def experts_hash(model: nn.Module) -> str:
    """Return a hash of Whisper's file and of all experts' tensors."""
    digest = hashlib.sha256(model.encoder.base_hash.encode())
    for language in model.encoder.config.languages:
        for name, value in expert_state(model, language).items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()
