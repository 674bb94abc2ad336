"""Lamer module: a frozen FFN, LoRA experts on its Linears and a router (Fig. 1c)."""

from torch import Tensor, nn
from torch.nn import functional as F

from espnet2_lamer.layers.config import TARGETS, LamerConfig
from espnet2_lamer.layers.lora import LoRAExpertLinear
from espnet2_lamer.layers.recording import RoutingRecord
from espnet2_lamer.layers.router import Router


class LamerFeedForward(nn.Module):
    """Takes the place of torchaudio's ``FeedForward`` and keeps its attribute names.

    Args:
        feed_forward: The FFN to adapt, with ``intermediate_dense``, ``output_dense``
            and a dropout after each.
        num_experts: N_l of this layer, at least 1. With one expert there is no router
            and the gate is 1 (HuBERT-LoRA).
        config: Rank, routing and targets.
        layer: Index of the transformer layer, for the routing record.
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
        self.intermediate_dropout = feed_forward.intermediate_dropout
        self.output_dropout = feed_forward.output_dropout
        self.record: RoutingRecord | None = None
        for name in TARGETS:
            linear = getattr(feed_forward, name).requires_grad_(False)
            if name in config.targets:
                linear = LoRAExpertLinear(
                    linear, num_experts, config.rank, config.alpha, config.dropout
                )
            self.add_module(name, linear)
        self.routers = nn.ModuleDict()
        if num_experts > 1:
            names = ("ffn",) if config.router == "ffn" else config.targets
            for name in names:
                # The FFN's input, or the input of the Linear that the router serves.
                source = TARGETS[0] if name == "ffn" else name
                dim = getattr(feed_forward, source).in_features
                self.routers[name] = Router(
                    dim, num_experts, config.top_k, config.balance == "bias"
                )

    def _route(self, name: str, x: Tensor) -> Tensor | None:
        if name not in self.routers:
            return None
        gates, probs = self.routers[name](x)
        if self.record is not None:
            self.record.add(self.layer, name, probs, gates)
        return gates

    def _linear(self, name: str, x: Tensor, ffn_gates: Tensor | None) -> Tensor:
        module = getattr(self, name)
        if not isinstance(module, LoRAExpertLinear):
            return module(x)
        gates = ffn_gates if "ffn" in self.routers else self._route(name, x)
        return module(x, gates)

    def forward(self, x: Tensor) -> Tensor:
        """Map hidden states ``[B, T, D]`` to ``[B, T, D]``."""
        gates = self._route("ffn", x)
        x = F.gelu(self._linear("intermediate_dense", x, gates))
        x = self.intermediate_dropout(x)
        return self.output_dropout(self._linear("output_dense", x, gates))
