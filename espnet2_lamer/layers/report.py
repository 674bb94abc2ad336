"""Exact parameter counts of an adapted model, each with its denominator."""

from torch import nn

from espnet2_lamer.layers.feed_forward import LamerFeedForward
from espnet2_lamer.layers.lora import LoRAExperts
from espnet2_lamer.layers.router import Router


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def parameter_report(model: nn.Module) -> dict[str, int | float]:
    """Count parameters.

    Returns:
        Integers: ``total`` (all parameters), ``backbone`` (neither expert, router nor
        head), ``trainable`` (requiring a gradient), ``lora`` (A and B of all experts),
        ``router``, ``head`` (masked-prediction head and a trained mask embedding),
        ``active`` (A and B of the experts that one frame uses, summed over layers).
        Percentages, the denominator after ``of``: ``trainable_percent_of_total``,
        ``trainable_percent_of_backbone``, ``lora_and_router_percent_of_backbone``,
        ``active_percent_of_backbone``.
    """
    lora = router = active = 0
    for module in model.modules():
        if isinstance(module, LamerFeedForward):
            routers = list(module.routers.values())
            top_k = routers[0].top_k if routers else None
            share = min(top_k or module.num_experts, module.num_experts)
            for child in module.children():
                if isinstance(child, LoRAExperts):
                    size = child.lora_A.numel() + child.lora_B.numel()
                    active += size // child.num_experts * share
        elif isinstance(module, LoRAExperts):
            lora += module.lora_A.numel() + module.lora_B.numel()
        elif isinstance(module, Router):
            router += _size(module)
    total = _size(model)
    head = 0
    for name, parameter in model.named_parameters():
        in_head = "logit_generator." in name
        if in_head or ("mask_generator." in name and parameter.requires_grad):
            head += parameter.numel()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
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
