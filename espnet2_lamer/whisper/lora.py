"""LoRA by name on Whisper's Linears: one per language, routed per utterance."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from whisper.model import AudioEncoder, TextDecoder

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers.lora import LoRAExperts
from espnet2_lamer.whisper.config import TARGETS, WhisperLoraConfig


@dataclass(frozen=True)
class Route:
    """Which LoRA each utterance of a batch uses.

    Args:
        names: Different names.
        index: Place in ``names`` by utterance ``[B]``; ``None`` where all share one.
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
    """Weights with which a layer combines LoRAs.

    Args:
        names: Names of the N LoRAs.
        weights: ``[N]``.
        merged: (sum a_i B_i)(sum a_i A_i) instead of sum a_i B_i A_i.
    """

    names: tuple[str, ...]
    weights: Tensor
    merged: bool


class ExpertLinear(nn.Module):
    r"""A frozen Linear and named LoRAs, of which each utterance uses one.

    .. math:: y = W_0 x + b + \frac{\alpha}{r} B_k A_k x

    Each LoRA is a module of its own: adding or training one leaves the others' tensors
    as they are. B starts at zero, A the same for every name.

    Args:
        base: The Linear; it is frozen here.
        name: Path of the Linear in Whisper, which seeds the first A.
        config: Alpha, dropout and seed.
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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.experts[name] = LoRAExperts(
                self.base.in_features,
                self.base.out_features,
                1,
                rank,
                self.alpha,
                like=self.base.weight,
            )

    def update(self, name: str) -> Tensor:
        """Return alpha / r * B A ``[d_out, d_in]`` of one LoRA."""
        expert = self.experts[name]
        return expert.scale * (expert.lora_B @ expert.lora_A[0])

    def forward(self, x: Tensor, use: Route | Mixture | None = None) -> Tensor:
        """Apply the Linear and what ``use`` names.

        Args:
            x: Input ``[B, T, d_in]``.
            use: ``None`` applies the Linear alone.

        Returns:
            Output ``[B, T, d_out]``.
        """
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
        a = torch.stack([expert.lora_A[0] for expert in experts])[use.index]
        b = torch.stack([expert.lora_B for expert in experts])[use.index]
        z = experts[0].scale * torch.bmm(x, a.transpose(1, 2).to(x.dtype))
        return y + torch.bmm(z, b.transpose(1, 2).to(z.dtype))

    @staticmethod
    def _mix(x: Tensor, experts: list[LoRAExperts], mixture: Mixture) -> Tensor:
        weights = mixture.weights.to(experts[0].lora_A.dtype)
        if mixture.merged:
            a = torch.stack([expert.lora_A[0] for expert in experts])
            b = torch.stack([expert.lora_B for expert in experts])
            a = (weights[:, None, None] * a).sum(0)
            b = (weights[:, None, None] * b).sum(0)
            z = experts[0].scale * F.linear(x, a.to(x.dtype))
            return F.linear(z, b.to(z.dtype))
        # A term per language: one product over all of them would add in an order of
        # its own, and a weight of one would no longer be that expert to the bit.
        total: Tensor | None = None
        for weight, expert in zip(weights, experts, strict=True):
            term = weight * expert(x)
            total = term if total is None else total + term
        return total


def apply_linear(module: nn.Module, x: Tensor, use: Route | Mixture | None) -> Tensor:
    """Apply a Linear with or without LoRAs."""
    return module(x, use) if isinstance(module, ExpertLinear) else module(x)


def add_loras(half: nn.Module, side: str, config: WhisperLoraConfig) -> None:
    """Wrap the targeted Linears of one half of Whisper, in place, and freeze it.

    Args:
        half: openai-whisper's ``AudioEncoder`` or ``TextDecoder``.
        side: ``"encoder"`` or ``"decoder"``.
        config: Which Linears, which LoRAs. With method ``"full"`` nothing is frozen.
    """
    if config.method == "full":
        return
    half.requires_grad_(False)
    if not getattr(config, side) or not config.loras:
        return
    kinds = TARGETS[config.targets]
    for index, block in enumerate(half.blocks):
        places = [(block.attn, "attn", kind) for kind in kinds if kind != "mlp"]
        if block.cross_attn is not None:
            places += [(block.cross_attn, "cross_attn", p[2]) for p in places]
        if "mlp" in kinds:
            places += [(block.mlp, "mlp", "0"), (block.mlp, "mlp", "2")]
        for parent, part, child in places:
            name = f"{side}.blocks.{index}.{part}.{child}"
            linear = ExpertLinear(parent.get_submodule(child), name, config)
            setattr(parent, child, linear)
    for name, rank in config.loras.items():
        add_lora(half, name, rank)


def expert_linears(module: nn.Module) -> dict[str, ExpertLinear]:
    """Return the wrapped Linears inside ``module`` by path."""
    return {n: m for n, m in module.named_modules() if isinstance(m, ExpertLinear)}


def lora_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the LoRAs inside ``module``, in the order of addition."""
    for linear in expert_linears(module).values():
        return tuple(linear.experts)
    return ()


def add_lora(module: nn.Module, name: str, rank: int) -> None:
    """Add a LoRA to every wrapped Linear; those that are there are not touched.

    Raises:
        RecipeError: There is one of that name.
    """
    if name in lora_names(module):
        raise RecipeError(f"there is a LoRA {name!r} already; remove it first")
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


def check_route(module: nn.Module, route: Route) -> None:
    """Check that every LoRA of a route is there.

    Raises:
        RecipeError: One is missing; the message names it and those that are there.
    """
    present = lora_names(module)
    missing = [name for name in route.names if name not in present]
    if present and missing:
        raise RecipeError(
            f"no expert for language {', '.join(missing)}, found experts for "
            f"{', '.join(present)}; train one and add it to lora.languages, or route "
            "to a language that has one"
        )


def merged_state(
    half: AudioEncoder | TextDecoder, name: str | None
) -> dict[str, Tensor]:
    """Return the half's own tensors with one LoRA added into the weights.

    Args:
        half: With wrapped Linears.
        name: The LoRA; ``None`` adds none.

    Returns:
        Clones under openai-whisper's names, relative to the half.
    """
    linears = expert_linears(half)
    state: dict[str, Tensor] = {}
    for key, value in half.state_dict().items():
        owner = key.partition(".experts.")[0]
        if ".experts." in key and owner in linears:
            continue
        state[key.replace(".base.", ".")] = value.detach().clone()
    for path, linear in linears.items():
        if name is not None:
            state[f"{path}.weight"] += linear.update(name).detach()
    return state
