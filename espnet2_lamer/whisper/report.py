"""Parameter counts of an adapted Whisper, from shapes."""

from torch import nn

from espnet2_lamer.whisper.config import STUDENT
from espnet2_lamer.whisper.lora import expert_linears


def whisper_parameter_report(model: nn.Module) -> dict[str, int | float | dict]:
    """Count parameters; a model on the meta device will do.

    Args:
        model: With ``encoder`` and ``decoder`` of this package.

    Returns:
        Integers: ``total``, ``whisper`` (the backbone), ``trainable``, ``lora`` (of all
        names), ``mixture`` (combination weights), ``identifier``, ``prompt`` (new
        prompt vectors), ``inference`` (what decoding needs: a student without its
        teachers). ``lora_by_name`` holds each LoRA's count. ``trainable_percent`` is
        of the backbone.
    """
    by_name: dict[str, int] = {}
    sizes = {"mixture": 0, "identifier": 0, "prompt": 0}
    halves = (model.encoder, model.decoder)
    for half in halves:
        for linear in expert_linears(half).values():
            for name, expert in linear.experts.items():
                by_name[name] = by_name.get(name, 0) + _size(expert)
    sizes["mixture"] = _size(model.encoder.combination)
    sizes["identifier"] = _size(model.encoder.identifier)
    sizes["prompt"] = _size(model.decoder.new_tokens)
    parameters = [p for half in halves for p in half.parameters()]
    total = sum(p.numel() for p in parameters)
    lora = sum(by_name.values())
    whisper = total - lora - sum(sizes.values())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    teachers = lora - by_name[STUDENT] if STUDENT in by_name else 0
    return {
        "total": total,
        "whisper": whisper,
        "trainable": trainable,
        "lora": lora,
        **sizes,
        "inference": total - teachers,
        "lora_by_name": by_name,
        "trainable_percent": 100.0 * trainable / whisper,
    }


def _size(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())
