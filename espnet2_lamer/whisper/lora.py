"""LoRA by name on Whisper's Linears, one per language and utterance; their files."""

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from espnet2_lamer.convert.state import check_fit
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path
from espnet2_lamer.layers.experts import LoRAExperts
from espnet2_lamer.whisper.config import STUDENT, TARGETS, WhisperLoraConfig

FORMAT = "espnet2_lamer.whisper.expert"
NEW_TOKEN = "new_token"


@dataclass(frozen=True)
class Route:
    """Which LoRA each utterance of a batch uses.

    ``index [B]`` is the place in ``names``, ``None`` where all share one.
    """

    names: tuple[str, ...]
    index: Tensor | None = None

    @classmethod
    def of(cls, names: Sequence[str], device: torch.device | str = "cpu") -> "Route":
        """Route utterance i to the LoRA ``names[i]``."""
        different = tuple(dict.fromkeys(names))
        if len(different) == 1:
            return cls(different)
        index = torch.tensor([different.index(name) for name in names], device=device)
        return cls(different, index)


@dataclass(frozen=True)
class Mixture:
    """Weights ``a [N]`` with which a layer combines N LoRAs.

    ``merged``: (sum a_i B_i)(sum a_i A_i) instead of sum a_i B_i A_i.
    """

    names: tuple[str, ...]
    weights: Tensor
    merged: bool


class ExpertLinear(nn.Module):
    r"""A frozen Linear and named LoRAs, of which each utterance uses one.

    .. math:: y = W_0 x + b + \frac{\alpha}{r} B_k A_k x

    Each LoRA is a module of its own: adding or training one leaves the others' tensors
    as they are. B starts at zero, A the same for every LoRA; ``name``, the Linear's
    path in Whisper, seeds it.
    """

    def __init__(self, base: nn.Linear, name: str, config: WhisperLoraConfig) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.experts = nn.ModuleDict()
        self.seed = zlib.crc32(name.encode()) ^ config.init_seed
        self.alpha = config.alpha
        self.dropout = nn.Dropout(config.dropout)

    def add(self, name: str, rank: int) -> None:
        """Add a LoRA that changes nothing yet."""
        sizes = self.base.in_features, self.base.out_features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            lora = LoRAExperts(*sizes, 1, rank, self.alpha, like=self.base.weight)
        self.experts[name] = lora

    def adapter_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Return one LoRA's parameters by their names inside it."""
        return dict(self.experts[name].named_parameters())

    def forward(self, x: Tensor, use: Route | Mixture | None = None) -> Tensor:
        """Map ``x [B, T, d_in]`` to ``[B, T, d_out]``; ``None``: the Linear alone."""
        y = self.base(x)
        if use is None:
            return y
        experts = [self.experts[name] for name in use.names]
        x = self.dropout(x)
        if isinstance(use, Mixture):
            return y + self._mix(x, experts, use)
        if use.index is None:
            return y + experts[0](x)
        # One product per side for the whole batch, each utterance with its own pair.
        a, b = (stack[use.index] for stack in _stacks(experts))
        z = experts[0].scale * torch.bmm(x, a.transpose(1, 2).to(x.dtype))
        return y + torch.bmm(z, b.transpose(1, 2).to(z.dtype))

    @staticmethod
    def _mix(x: Tensor, experts: list[LoRAExperts], mixture: Mixture) -> Tensor:
        weights = mixture.weights.to(experts[0].lora_A.dtype)
        if mixture.merged:
            a, b = ((weights[:, None, None] * s).sum(0) for s in _stacks(experts))
            z = experts[0].scale * F.linear(x, a.to(x.dtype))
            return F.linear(z, b.to(z.dtype))
        # A term per language: one product over all of them would add in an order of
        # its own, and a weight of one would no longer be that expert to the bit.
        terms = [w * expert(x) for w, expert in zip(weights, experts, strict=True)]
        return reduce(torch.add, terms)


def _stacks(experts: list[LoRAExperts]) -> tuple[Tensor, Tensor]:
    """A ``[N, r, d_in]`` and B ``[N, d_out, r]`` of LoRAs of one rank."""
    return (
        torch.stack([expert.lora_A[0] for expert in experts]),
        torch.stack([expert.lora_B for expert in experts]),
    )


def apply_linear(module: nn.Module, x: Tensor, use: Route | Mixture | None) -> Tensor:
    """Apply a Linear with or without LoRAs."""
    return module(x, use) if isinstance(module, ExpertLinear) else module(x)


def add_loras(half: nn.Module, side: str, config: WhisperLoraConfig) -> None:
    """Wrap the targeted Linears of one half of Whisper, in place, and freeze it.

    With method ``"full"`` nothing is wrapped nor frozen.
    """
    if config.method == "full":
        return
    half.requires_grad_(False)
    if not getattr(config, side) or not config.loras:
        return
    for path, linear in [*half.blocks.named_modules()]:
        parent, _, child = path.rpartition(".")
        # The blocks' own names are numbers, too.
        if parent and child in TARGETS[config.targets]:
            wrapped = ExpertLinear(linear, f"{side}.blocks.{path}", config)
            setattr(half.blocks.get_submodule(parent), child, wrapped)
    for name, rank in config.loras.items():
        add_lora(half, name, rank)


def expert_linears(module: nn.Module) -> dict[str, ExpertLinear]:
    """Return the wrapped Linears inside ``module`` by path."""
    return {n: m for n, m in module.named_modules() if isinstance(m, ExpertLinear)}


def lora_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the LoRAs inside ``module``, in the order of addition."""
    return next((tuple(x.experts) for x in expert_linears(module).values()), ())


def add_lora(module: nn.Module, name: str, rank: int) -> None:
    """Add a LoRA to every wrapped Linear; those that are there are not touched."""
    for linear in expert_linears(module).values():
        linear.add(name, rank)


def remove_lora(module: nn.Module, name: str) -> None:
    """Remove a LoRA from every wrapped Linear."""
    for linear in expert_linears(module).values():
        del linear.experts[name]


def train_only(module: nn.Module, name: str | None) -> None:
    """Let one LoRA train and no other."""
    for linear in expert_linears(module).values():
        for other, expert in linear.experts.items():
            expert.requires_grad_(other == name)


def check_route(module: nn.Module, route: Route | None) -> None:
    """Raise ``RecipeError`` where a LoRA of a route is missing, and name it."""
    present = lora_names(module)
    missing = [name for name in route.names if name not in present] if route else []
    if present and missing:
        raise RecipeError(
            f"no expert for language {', '.join(missing)}, found experts for "
            f"{', '.join(present)}; train one and add it to lora.languages, or route "
            "to a language that has one"
        )


def whisper_parameter_report(model: nn.Module) -> dict[str, int | float | dict]:
    """Count parameters; a model on the meta device will do.

    Returns:
        Integers: ``total``, ``whisper`` (the backbone), ``trainable``, ``lora`` (of all
        names), ``mixture`` (combination weights), ``identifier``, ``prompt`` (new
        prompt vectors), ``inference`` (what decoding needs: a student without its
        teachers). ``lora_by_name`` holds each LoRA's count. ``trainable_percent`` is
        of the backbone.
    """

    def count(parameters: Iterable[Tensor]) -> int:
        return sum(parameter.numel() for parameter in parameters)

    encoder, decoder = model.encoder, model.decoder
    by_name: Counter[str] = Counter()
    for linear in expert_linears(model).values():
        for name, expert in linear.experts.items():
            by_name[name] += count(expert.parameters())
    sizes = {
        name: 0 if module is None else count(module.parameters())
        for name, module in (
            ("mixture", encoder.combination),
            ("identifier", encoder.identifier),
            ("prompt", decoder.new_tokens),
        )
    }
    parameters = [*encoder.parameters(), *decoder.parameters()]
    total, lora = count(parameters), by_name.total()
    whisper = total - lora - sum(sizes.values())
    trainable = count(p for p in parameters if p.requires_grad)
    return {
        "total": total,
        "whisper": whisper,
        "trainable": trainable,
        "lora": lora,
        **sizes,
        "inference": total - (lora - by_name[STUDENT] if STUDENT in by_name else 0),
        "lora_by_name": dict(by_name),
        "trainable_percent": 100.0 * trainable / whisper,
    }


def expert_state(model: nn.Module, language: str) -> dict[str, Tensor]:
    """Return a LoRA's tensors by the path of their Linear; ``RecipeError`` if none."""
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
