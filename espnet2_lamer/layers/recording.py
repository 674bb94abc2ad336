"""Record what the routers decided during a forward pass; off unless asked for."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from espnet2_lamer.layers.feed_forward import LamerFeedForward, RoutingRecord


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
