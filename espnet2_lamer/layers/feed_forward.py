"""Lamer module: frozen FFN, LoRA experts and router (Fig. 1c), put into a HuBERT."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from espnet2_lamer.layers.config import (
    LINEARS,
    LamerConfig,
    parse_allocation,
    parse_ranks,
)
from espnet2_lamer.layers.experts import LoRAExpertLinear, LoRAExperts, Router
from espnet2_lamer.layers.packing import Packing
from espnet2_lamer.layers.working import linear


@dataclass
class Routing:
    """Output of one router: ``probs`` and ``gates``, both ``[B, T, N]`` float32."""

    layer: int
    name: str
    probs: Tensor
    gates: Tensor
    router: Router | None = None


class RoutingRecord:
    """Router outputs of the last forward pass, in layer order.

    The tensors keep their graph, so a balance loss can be computed from them. A network
    that computes real frames alone says by ``packing`` which those are.
    """

    def __init__(self) -> None:
        self._routings: dict[tuple[int, str], Routing] = {}
        self.packing: Packing | None = None

    def add(self, routing: Routing) -> None:
        """Store one router's output; a second forward replaces the first."""
        self._routings[routing.layer, routing.name] = routing

    def __iter__(self) -> Iterator[Routing]:
        """Yield what each router gave, 0 at padding that was not computed."""
        for one in self._routings.values():
            if self.packing is not None:
                probs, gates = map(self.packing.unpack, (one.probs, one.gates))
                one = replace(one, probs=probs, gates=gates)
            yield one

    def __len__(self) -> int:
        return len(self._routings)

    def rows_of(self, frames: Tensor) -> Tensor:
        """Flatten ``frames [B, T]`` as this record's outputs are, ``[R]``."""
        if self.packing is not None:
            return self.packing.pack(frames)
        return frames.flatten()

    def by_expert_count(self) -> list[list[Routing]]:
        """Group routers with equal N, as rows ``[R, N]``, to be computed at once."""
        groups: dict[int, list[Routing]] = {}
        for one in self._routings.values():
            probs, gates = (x.flatten(0, -2) for x in (one.probs, one.gates))
            rows = replace(one, probs=probs, gates=gates)
            groups.setdefault(probs.shape[-1], []).append(rows)
        return list(groups.values())


class LamerFeedForward(nn.Module):
    """Takes the place of torchaudio's ``FeedForward`` and keeps its attribute names.

    With one expert (``num_experts`` is N_l of this layer) there is no router and the
    gate is 1 (HuBERT-LoRA). ``config.rank`` is one number, r_l of this layer; ``layer``
    numbers the layer in the routing record.

    Where ``config.merge`` is ``"utterance"`` every frame has the gates of its utterance
    (of its crop, where crops are trained): the router's probabilities averaged over the
    real frames, masked ones included. These are recorded as probabilities and gates.
    Which frames are real :meth:`forward` knows from its ``packing``, or, where a block
    of torchaudio calls it, from ``real [B, T]`` (see :func:`add_lamer`); without either
    all are.
    """

    def __init__(
        self,
        feed_forward: nn.Module,
        num_experts: int,
        config: LamerConfig,
        layer: int = 0,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.num_experts = num_experts
        self.one_router = config.router == "ffn"
        self.merges = merges = config.merges
        self.real: Tensor | None = None
        self.intermediate_dropout = feed_forward.intermediate_dropout
        self.output_dropout = feed_forward.output_dropout
        self.record: RoutingRecord | None = None
        (rank,) = parse_ranks(config.rank, 1)
        options = num_experts, rank, config.alpha, config.dropout
        for name in LINEARS:
            linear = getattr(feed_forward, name).requires_grad_(False)
            if name in config.targets:
                linear = LoRAExpertLinear(linear, *options, merges)
            self.add_module(name, linear)
        first, last = (getattr(feed_forward, name) for name in LINEARS)
        self.ffn_experts = None
        if "ffn" in config.targets:
            sizes = first.in_features, last.out_features
            like = first.weight
            self.ffn_experts = LoRAExperts(*sizes, *options, like, merges)
        self.routers = nn.ModuleDict()
        if num_experts > 1:
            for name in ("ffn",) if self.one_router else config.targets:
                # A router reads what the experts it serves read.
                dim = (last if name == LINEARS[1] else first).in_features
                self.routers[name] = Router(
                    dim, num_experts, config.top_k, config.balance == "bias"
                )

    def _route(self, name: str, x: Tensor, packing: Packing | None) -> Tensor | None:
        if name not in self.routers:
            return None
        router = self.routers[name]
        gates, probs = router(x)
        if self.merges:
            probs = gates = self._utterance_means(probs, packing)
        if self.record is not None:
            self.record.add(Routing(self.layer, name, probs, gates, router))
        return gates

    def _utterance_means(self, probs: Tensor, packing: Packing | None) -> Tensor:
        """Give every frame of ``[..., N]`` the mean over its utterance's real ones."""
        if packing is not None:
            return packing.utterance_means(probs)
        if self.real is None:
            return probs.mean(-2, keepdim=True).expand_as(probs)
        real = self.real.unsqueeze(-1)  # [B, T, 1]
        sums = probs.masked_fill(~real, 0.0).sum(-2, keepdim=True)
        return (sums / real.sum(-2, keepdim=True).clamp(min=1)).expand_as(probs)

    def _linear(
        self, name: str, x: Tensor, ffn_gates: Tensor | None, packing: Packing | None
    ) -> Tensor:
        module = getattr(self, name)
        if not isinstance(module, LoRAExpertLinear):
            return linear(module, x)
        gates = ffn_gates if self.one_router else self._route(name, x, packing)
        return module(x, gates)

    def forward(
        self, x: Tensor, rows: Tensor | None = None, packing: Packing | None = None
    ) -> Tensor:
        """Map hidden states ``[..., D]`` to ``[..., D]``.

        With positions ``rows [M]`` of ``x [R, D]`` all frames are routed, and only
        those computed, ``[M, D]``; the layer must have one router, or none.
        ``packing`` says which rows ``x [R, D]`` are of one utterance.
        """
        gates = self._route("ffn", x, packing)
        if rows is not None:
            x = x.index_select(0, rows)
            gates = None if gates is None else gates.index_select(0, rows)
        h = F.gelu(self._linear("intermediate_dense", x, gates, packing))
        y = self._linear("output_dense", self.intermediate_dropout(h), gates, packing)
        if self.ffn_experts is not None:
            y = y + self.ffn_experts(x, gates)
        return self.output_dropout(y)


@contextmanager
def record_routing(model: nn.Module) -> Iterator[RoutingRecord]:
    """Record ``probs`` and ``gates`` of every router in ``model`` inside the block.

    Under gradient checkpointing the block has ended by the time the backward pass
    recomputes a layer, so each router is recorded once.
    """
    layers = [m for m in model.modules() if isinstance(m, LamerFeedForward)]
    before = [layer.record for layer in layers]
    record = RoutingRecord()
    for layer in layers:
        layer.record = record
    try:
        yield record
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.record = old


def add_lamer(wav2vec2: nn.Module, config: LamerConfig) -> nn.Module:
    """Replace the FFN of every layer with experts, in place, and freeze the backbone.

    The model is a ``torchaudio.models.Wav2Vec2Model``, or anything with
    ``encoder.transformer.layers[i].feed_forward``. Where experts are merged, blocks
    of torchaudio tell them by a hook which frames their attention mask leaves.

    Raises:
        ValueError: Allocation or ranks do not fit, or experts are there already.
    """
    layers = wav2vec2.encoder.transformer.layers
    counts = parse_allocation(config.allocation, len(layers))
    ranks = parse_ranks(config.rank, len(layers))
    if any(isinstance(layer.feed_forward, LamerFeedForward) for layer in layers):
        raise ValueError("the model has LoRA experts already; start from its base")
    wav2vec2.requires_grad_(False)
    sizes = zip(layers, counts, ranks, strict=True)
    for index, (layer, count, rank) in enumerate(sizes):
        if count:
            own = replace(config, rank=rank)
            ffn = LamerFeedForward(layer.feed_forward, count, own, layer=index)
            layer.feed_forward = ffn
            if config.merges:
                layer.register_forward_pre_hook(_tell_real, with_kwargs=True)
                layer.register_forward_hook(_forget_real, always_call=True)
    return wav2vec2


def _tell_real(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Tell merged experts which frames are real, by what torchaudio tells attention."""
    given = args[1] if len(args) > 1 else kwargs.get("attention_mask")
    # [B, 1, T, T]: far below 0 where a key is padding.
    layer.feed_forward.real = None if given is None else given[:, 0, 0] > -1.0


def _forget_real(layer: nn.Module, args: tuple, output: Any) -> None:
    layer.feed_forward.real = None
