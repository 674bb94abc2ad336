"""Leave the experts out for a while: the frozen base, without a second copy of it."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from espnet2_lamer.layers.feed_forward import LamerFeedForward
from espnet2_lamer.layers.lora import LoRAExpertLinear


@contextmanager
def experts_off(model: nn.Module) -> Iterator[nn.Module]:
    """Compute the base inside the block, to the bit; no weight is touched.

    Experts and routers are taken out of the module tree meanwhile, so neither
    ``state_dict`` nor an optimizer may be made inside.

    Args:
        model: Anything with :class:`LamerFeedForward` inside.
    """
    layers = [m for m in model.modules() if isinstance(m, LamerFeedForward)]
    before = [dict(layer._modules) for layer in layers]
    try:
        for layer, modules in zip(layers, before, strict=True):
            for name, module in modules.items():
                if isinstance(module, LoRAExpertLinear):
                    setattr(layer, name, module.base)
            layer.ffn_experts = None
            layer.routers = nn.ModuleDict()
        yield model
    finally:
        for layer, modules in zip(layers, before, strict=True):
            layer._modules.update(modules)
