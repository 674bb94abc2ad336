"""Record what the routers decided during a forward pass; off unless asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class Routing:
    """Output of one router: ``probs`` and ``gates``, both ``[B, T, N]`` float32."""

    layer: int
    name: str
    probs: Tensor
    gates: Tensor


class RoutingRecord:
    """Router outputs of the last forward pass, in layer order.

    The tensors keep their graph, so a balance loss can be computed from them.
    """

    def __init__(self) -> None:
        self._routings: dict[tuple[int, str], Routing] = {}

    def add(self, layer: int, name: str, probs: Tensor, gates: Tensor) -> None:
        """Store one router's output; a second forward replaces the first."""
        self._routings[layer, name] = Routing(layer, name, probs, gates)

    def __iter__(self) -> Iterator[Routing]:
        """Iterate over the recorded :class:`Routing` entries."""
        return iter(self._routings.values())

    def __len__(self) -> int:
        """Count the routers recorded."""
        return len(self._routings)

    def clear(self) -> None:
        """Forget everything recorded."""
        self._routings.clear()


@contextmanager
def record_routing(model: nn.Module) -> Iterator[RoutingRecord]:
    """Record ``probs`` and ``gates`` of every router in ``model`` inside the block.

    Under gradient checkpointing the block has ended by the time the backward pass
    recomputes a layer, so each router is recorded once.
    """
    from espnet2_lamer.layers.feed_forward import LamerFeedForward

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
