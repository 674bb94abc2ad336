"""Look into an adapted model: its routing, its base, its parameters."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from espnet2_lamer.layers.experts import LoRAExpertLinear, LoRAExperts
from espnet2_lamer.layers.feed_forward import LamerFeedForward


def adapter_kinds(model: nn.Module) -> dict[nn.Parameter, str]:
    """Return the kind (``lora_A``, ``lora_B``, ``routers``) of every adapter weight."""
    return {
        parameter: kind
        for module in model.modules()
        if hasattr(module, "adapter_parameters")
        for kind, parameter in module.adapter_parameters().items()
    }


@contextmanager
def experts_off(model: nn.Module) -> Iterator[nn.Module]:
    """Compute the base inside the block, to the bit; no weight is touched.

    Experts and routers are taken out of the module tree meanwhile, so neither
    ``state_dict`` nor an optimizer may be made inside.
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


def parameter_report(model: nn.Module) -> dict[str, int | float]:
    """Count parameters; what a percentage is of stands in its name.

    ``backbone`` are neither expert, router nor head, ``lora`` A and B of all experts,
    ``head`` the masked-prediction head and a trained mask embedding, ``active`` A and
    B of the experts that one frame uses, summed over layers.
    """
    sizes: Counter[str] = Counter()
    for parameter, kind in adapter_kinds(model).items():
        sizes[kind] += parameter.numel()
    active = head = 0
    for module in model.modules():
        if isinstance(module, LamerFeedForward):
            routers = list(module.routers.values())
            top_k = routers[0].top_k if routers else None
            share = min(top_k or module.num_experts, module.num_experts)
            for child in module.children():
                if isinstance(child, LoRAExperts):
                    size = child.lora_A.numel() + child.lora_B.numel()
                    active += size // child.num_experts * share
        # Of torchaudio's HuBERTPretrainModel.
        if hasattr(module, "logit_generator"):
            parts = list(module.logit_generator.parameters())
            mask = module.mask_generator.parameters()
            parts += [p for p in mask if p.requires_grad]
            head += sum(p.numel() for p in parts)
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lora, router = sizes["lora_A"] + sizes["lora_B"], sizes["routers"]
    backbone = total - lora - router - head

    def percent(part: int, whole: int) -> float:
        return 100.0 * part / whole if whole else 0.0

    return {
        "total": total,
        "backbone": backbone,
        "trainable": trainable,
        "lora": lora,
        "router": router,
        "head": head,
        "active": active,
        "trainable_percent_of_total": percent(trainable, total),
        "trainable_percent_of_backbone": percent(trainable, backbone),
        "lora_and_router_percent_of_backbone": percent(lora + router, backbone),
        "active_percent_of_backbone": percent(active, backbone),
    }
