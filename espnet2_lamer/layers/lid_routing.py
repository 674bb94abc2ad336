"""LoRA shared in lower layers and of each language in upper ones, routed by language.

HLoRA (arXiv 2601.00557): one pass, no language is given; upper layers are weighted by
the posterior of a language identifier that reads the state below them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet2_lamer.layers.config import LINEARS, LamerConfig, check_values
from espnet2_lamer.layers.feed_forward import LamerFeedForward


@dataclass
class LidRoutingConfig:
    """What :func:`add_lid_routing` inserts.

    Args:
        languages: ISO 639-3 codes, two or more, in the order of the identifier.
        layers: Blocks that get LoRA, from the first.
        shared_layers: k: how many of them share one LoRA, and the state that the
            identifier reads. ``None``: three quarters, as 9 of 12 in HLoRA. With k =
            ``layers`` nothing is routed: plain LoRA, without an identifier.
        rank: Of every LoRA.
        alpha: LoRA scale is alpha / rank; ``None`` means alpha = rank.
        targets: Linears of the feed-forward network that get LoRA.

    Raises:
        RecipeError: An option has an impossible value.
    """

    languages: Sequence[str]
    layers: int
    shared_layers: int | None = None
    rank: int = 16
    alpha: float | None = None
    targets: Sequence[str] = LINEARS

    def __post_init__(self) -> None:
        """Fill in the number of shared layers, and check the options."""
        if self.shared_layers is None and isinstance(self.layers, int):
            self.shared_layers = 3 * self.layers // 4
        self.languages, self.targets = list(self.languages), list(self.targets)
        langs, shared = self.languages, self.shared_layers
        several = len(set(langs)) == len(langs) > 1
        fits = type(shared) is int and 0 <= shared <= self.layers
        most = f"0 to {self.layers}, the layers below what the head reads"
        some = set(self.targets) <= set(LINEARS)
        check_values(
            "lid_routed.",
            ("layers", self.layers, self.layers >= 1, "1 or more: the head reads 0"),
            ("languages", langs, several, "two or more different ones to route by"),
            ("shared_layers", shared, fits, most),
            ("targets", self.targets, some, f"a non-empty subset of {list(LINEARS)}"),
        )
        self.experts()  # checks the others

    def experts(self) -> LamerConfig:
        """Return the options of the LoRA itself."""
        options = {"rank": self.rank, "alpha": self.alpha, "targets": self.targets}
        return LamerConfig(allocation=1, top_k=None, balance="none", **options)


class LanguageIdentifier(nn.Module):
    r"""The language posterior of an utterance, from the state of its real frames.

    .. math:: p = \mathrm{softmax}(W \tfrac{1}{T} \sum_{t=1}^{T} x_t + b)

    Attributes:
        posterior: ``[B, N]`` of the batch that runs through the upper blocks.
    """

    def __init__(self, dim: int, num_languages: int) -> None:
        super().__init__()
        self.num_languages = num_languages
        self.linear = nn.Linear(dim, num_languages)
        self.posterior: Tensor | None = None
        self.heard: list[Tensor] | None = None

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained beside a frozen base, by kind."""
        return {"routers": self.linear.weight, "router_biases": self.linear.bias}

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Map states ``x [B, T, D]`` to float32 logits ``[B, N]``.

        ``real [B, T]`` marks frames that are no padding; none: all are real.
        """
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if real is None:
                mean = x.mean(1)
            else:
                # Whatever is in padding, NaN included, counts for nothing.
                x = x.masked_fill(~real[..., None], 0.0)
                mean = x.sum(1) / real.sum(1, keepdim=True)
            return F.linear(mean, self.linear.weight, self.linear.bias)

    def listen(self, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Identify what the first routed block gets: its state and attention mask.

        torchaudio's mask ``[B, 1, T, T]`` is added to scores and 0 for real frames.
        """
        x, mask = inputs[0], inputs[1] if len(inputs) > 1 else None
        logits = self(x, None if mask is None else mask[:, 0, 0] == 0)
        self.posterior = logits.softmax(-1)
        if self.heard is not None:
            self.heard.append(logits)

    def forget(self, *_: Any) -> None:
        """Drop the posterior when the last routed block is done with it."""
        self.posterior = None


class LanguageRouter(nn.Module):
    """Stands where a layer's router does: gates are the utterance's posterior."""

    top_k = None
    is_sparse = False

    def __init__(self, identifier: LanguageIdentifier) -> None:
        super().__init__()
        self.num_experts = identifier.num_languages
        # No child: the identifier has one place in the model.
        self._identifier = (identifier,)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give all frames of ``x [B, T, D]`` their utterance's gates ``[B, T, N]``."""
        gates = self._identifier[0].posterior[:, None].expand(*x.shape[:-1], -1)
        return gates, gates


def add_lid_routing(wav2vec2: nn.Module, config: LidRoutingConfig) -> nn.Module:
    r"""Give a model without experts LoRA in its first blocks, in place.

    In block 1 to k, with A and B shared by all languages, and in those above

    .. math::
        y = W_0 x + b + \frac{\alpha}{r} B A x, \qquad
        y = W_0 x + b + \frac{\alpha}{r} \sum_{l=1}^{N} p_l B_l A_l x

    where p is the posterior of the utterance's language in state k. B is zero: before
    the first update every state is that of the model. The backbone is frozen.

    Raises:
        RecipeError: The model has fewer blocks.
        ValueError: It has experts already.
    """
    blocks = wav2vec2.encoder.transformer.layers
    expected = f"at most {len(blocks)}, the layers of the model"
    right = config.layers <= len(blocks)
    check_values("lid_routed.", ("layers", config.layers, right, expected))
    if any(isinstance(block.feed_forward, LamerFeedForward) for block in blocks):
        raise ValueError(
            "lid_routed: the model has LoRA experts already; start from one without, "
            "such as its base"
        )
    wav2vec2.requires_grad_(False)
    shared, languages = config.shared_layers, len(config.languages)
    identifier = None
    if shared < config.layers:
        dim = blocks[0].feed_forward.intermediate_dense.in_features
        identifier = LanguageIdentifier(dim, languages)
        wav2vec2.add_module("language_identifier", identifier)
        blocks[shared].register_forward_pre_hook(identifier.listen)
        blocks[config.layers - 1].register_forward_hook(identifier.forget)
    for index, block in enumerate(blocks[: config.layers]):
        count = 1 if index < shared else languages
        plain = block.feed_forward
        block.feed_forward = LamerFeedForward(plain, count, config.experts(), index)
        if count > 1:
            block.feed_forward.routers["ffn"] = LanguageRouter(identifier)
    return wav2vec2


@contextmanager
def record_languages(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect logits ``[B, N]`` of what identifiers in ``model`` hear, differentiable.

    One tensor for each forward pass inside the block; without identifiers none.
    """
    found = [m for m in model.modules() if isinstance(m, LanguageIdentifier)]
    logits: list[Tensor] = []
    for identifier in found:
        identifier.heard = logits
    try:
        yield logits
    finally:
        for identifier in found:
            identifier.heard = None
