"""How far training has moved a model: norms of its experts and its routers.

Knows torch only, and neither the classes of a model nor a file's format: names of
parameters tell what is an expert, a frozen weight or a router.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from espnet2_lamer.layers.config import LINEARS

# Part (experts, routers), "<layer>.<name>", figure, and how many values it has.
Entry = tuple[str, str, str, int]

_EXPERTS = re.compile(r"layers\.(\d+)\.feed_forward\.(\w+)\.lora_A$")
_ROUTER = re.compile(r"layers\.(\d+)\.feed_forward\.routers\.(\w+)\.weight$")
_FROZEN = re.compile(
    rf"layers\.(\d+)\.feed_forward\.({'|'.join(LINEARS)})(\.base)?\.weight$"
)


def update_norms(lora_a: Tensor, lora_b: Tensor, scale: float = 1.0) -> Tensor:
    r"""Frobenius norm of what each expert adds to its frozen weight, ``[N]`` float64.

    .. math:: \| s B_k A_k \|_F = s \sqrt{\mathrm{tr}(B_k^T B_k \, A_k A_k^T)}

    Two r x r matrices per expert are multiplied instead of a ``[d_out, d_in]`` one
    made. ``lora_a`` is ``[N, r, d_in]``, ``lora_b`` ``[d_out, N * r]``, ``scale``
    alpha / r.
    """
    a = lora_a.double()
    b = lora_b.double().unflatten(1, a.shape[:2]).permute(1, 2, 0)
    squares = ((b @ b.mT) * (a @ a.mT)).sum((1, 2))
    # Rounding may leave an expert that is zero just below it.
    return scale * squares.clamp_min(0.0).sqrt()


@torch.no_grad()
def frozen_norms(source: nn.Module | Mapping[str, Tensor]) -> dict[str, float]:
    """Frobenius norm of the frozen weight beside each place for experts.

    ``source`` is a model, or the weights of a base under torchaudio's or Hugging
    Face's names. Keys are ``"<layer>.<Linear>"``; where a model has experts beside a
    whole FFN, ``"<layer>.ffn"`` is that of the product of both Linears, which is what
    the FFN would be without its GELU.
    """
    parameters = _parameters(source)
    found = {
        (match[1], match[2]): weight.float()
        for name, weight in parameters.items()
        if (match := _FROZEN.search(name))
    }
    norms = {
        f"{layer}.{linear}": torch.linalg.vector_norm(weight)
        for (layer, linear), weight in found.items()
    }
    for name in parameters:
        match = _EXPERTS.search(name)
        if match and match[2] == "ffn_experts":
            first, last = (found[match[1], linear] for linear in LINEARS)
            norms[f"{match[1]}.ffn"] = torch.linalg.vector_norm(last @ first)
    if not norms:
        return {}
    values = torch.stack(list(norms.values())).tolist()
    return dict(zip(norms, values, strict=True))


@torch.no_grad()
def norm_vector(
    source: nn.Module | Mapping[str, Tensor], scale: float = 1.0
) -> tuple[list[Entry], Tensor]:
    """Compute all norms where the weights are; nothing waits for the device.

    Returns:
        What :func:`read_norms` needs: the entries, and their values in a float32
        vector.
    """
    parameters = _parameters(source)
    modules = source.named_modules() if isinstance(source, nn.Module) else ()
    scales = {
        f"{name}.lora_A": module.scale
        for name, module in modules
        if hasattr(module, "lora_A")
    }
    found: dict[tuple[str, str, str], Tensor] = {}
    for name, weight in parameters.items():
        if match := _EXPERTS.search(name):
            key = f"{match[1]}.{match[2].removesuffix('_experts')}"
            b = parameters[f"{name.removesuffix('lora_A')}lora_B"]
            norms = update_norms(weight, b, scales.get(name, scale))
            found["experts", key, "update"] = norms
            found["experts", key, "a"] = weight.double().flatten(1).norm(dim=1)
            columns = b.double().unflatten(1, weight.shape[:2])
            found["experts", key, "b"] = columns.norm(dim=(0, 2))
        elif match := _ROUTER.search(name):
            rows = weight.double().norm(dim=1)
            found["routers", f"{match[1]}.{match[2]}", "row"] = rows
    entries = [(*key, value.numel()) for key, value in found.items()]
    vectors = [value.float() for value in found.values()]
    return entries, torch.cat(vectors) if vectors else torch.empty(0)


def read_norms(
    entries: Sequence[Entry], values: Tensor, frozen: Mapping[str, float]
) -> dict[str, Any]:
    """Name the values of :func:`norm_vector`, on the host; see :func:`norms_of`."""
    result: dict[str, Any] = {"experts": {}, "routers": {}}
    parts = values.split([entry[-1] for entry in entries])
    for (part, key, figure, _), numbers in zip(entries, parts, strict=True):
        result[part].setdefault(key, {})[figure] = numbers.tolist()
    for key, one in result["experts"].items():
        if frozen.get(key):
            one["share"] = [norm / frozen[key] for norm in one["update"]]
    return result


def norms_of(
    source: nn.Module | Mapping[str, Tensor],
    frozen: Mapping[str, float] | None = None,
    scale: float = 1.0,
) -> dict[str, Any]:
    """Norms of all experts and routers of a model, or of its state dict.

    Args:
        source: A model, or what its ``state_dict`` gave.
        frozen: Norms of the frozen weights (:func:`frozen_norms`), which state dicts
            of this package do not hold; without them there are no shares.
        scale: alpha / r. A model's experts know theirs.

    Returns:
        Lists with a value per expert. ``experts``, per ``"<layer>.<target>"``:
        ``update`` is ||(alpha / r) B_k A_k||_F, ``share`` that over the frozen
        weight's norm, ``a`` and ``b`` the norms of A_k and B_k. ``routers``, per
        ``"<layer>.<name>"``: ``row``, the norm of the expert's row of the weight.
    """
    entries, values = norm_vector(source, scale)
    return read_norms(entries, values.cpu(), frozen or {})


def _parameters(source: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(source, nn.Module):
        return dict(source.named_parameters())
    return dict(source)
