"""Ways to damage a file: its bytes, a value in it, its text, its tensors."""

import copy
import math
import os

import torch

JUNK = [
    *(None, True, -1, 0, 1, 10**12, 2**70, 1e308, math.nan, math.inf),
    *("", "x", "../../etc/passwd", "/dev/zero", "\0", [], [[]], {}, {"a": 1}),
]
# Nine levels of nine: 9**9 entries for whoever walks through them.
BOMB = "".join(
    f"l{n}: &l{n} [{', '.join([f'*l{n - 1}' if n else 'x'] * 9)}]\n" for n in range(10)
)


class Code:
    """Unpickled, it leaves a file behind."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def bytes_of(content, draw):
    """Truncate, flip bits, overwrite, insert, cut or double a part."""
    data = bytearray(content)
    start = draw.randrange(len(data))
    stop = min(len(data), start + draw.choice([1, 16, 1000, 10**6]))
    kind = draw.choice(["truncate", "flip", "zero", "insert", "cut", "double", "noise"])
    if kind == "truncate":
        del data[start:]
    elif kind == "flip":
        for _ in range(draw.choice([1, 4, 64])):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "zero":
        data[start:stop] = bytes(stop - start)
    elif kind == "insert":
        data[start:start] = draw.randbytes(stop - start)
    elif kind == "cut":
        del data[start:stop]
    elif kind == "double":
        data[start:start] = data[start:stop]
    else:
        data[start:stop] = draw.randbytes(stop - start)
    return bytes(data)


def _paths(value, path=()):
    items = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, child in items:
        yield (*path, key)
        yield from _paths(child, (*path, key))


def value_of(value, draw, inside=()):
    """Replace or remove one value of a nest of mappings and lists.

    Args:
        value: The nest; not changed.
        draw: Random numbers.
        inside: Only below one of these keys.
    """
    changed = copy.deepcopy(value)
    paths = [p for p in _paths(changed) if not inside or p[0] in inside]
    *parents, last = draw.choice(paths)
    target = changed
    for key in parents:
        target = target[key]
    if draw.random() < 0.2:
        del target[last]
    else:
        target[last] = draw.choice(JUNK)
    return changed


def yaml_of(text, draw, canary):
    """Add to YAML what a hostile writer would: tags, bombs, loops, noise."""
    kind = draw.randrange(9)
    if kind == 0:
        return text + f"x: !!python/object/apply:os.system ['touch {canary}']\n"
    if kind == 1:
        return text + BOMB
    if kind == 2:
        return text + "loop: &a [*a]\n"
    if kind == 3:
        return text + "deep: " + "[" * 5000 + "]" * 5000 + "\n"
    if kind == 4:
        return text + "number: " + "9" * 10000 + "\n"
    if kind == 5:
        return text.encode() + b"\xff\xfe\x00bad: 1\n"
    if kind == 6:
        return text + "---\nsecond: document\n"
    if kind == 7:
        return text + "when: 2026-99-99\n? [a, b]\n: 1\n"
    return bytes_of(text.encode(), draw)


def tensors_of(state, draw, canary=None):
    """Change names, types, shapes or kinds of a state dict."""
    changed = dict(state)
    name = draw.choice(sorted(changed))
    tensor = changed[name]
    kind = draw.randrange(12 if canary else 8)
    if kind == 0:
        del changed[name]
    elif kind == 1:
        changed[f"{name}.more"] = tensor.clone()
    elif kind == 2:
        types = [torch.int8, torch.bool, torch.float16, torch.float64, torch.int64]
        changed[name] = tensor.to(draw.choice(types))
    elif kind == 3:
        changed[name] = tensor.reshape(-1)[: draw.randrange(max(1, tensor.numel()))]
    elif kind == 4:
        changed[name] = tensor.reshape(*tensor.shape, 1)
    elif kind == 5:
        changed[name] = torch.zeros(())
    elif kind == 6:
        changed[name] = torch.zeros(0)
    elif kind == 7:
        changed[draw.choice(["x", "", "encoder."])] = changed.pop(name)
    elif kind == 8:
        # Four bytes in the file, four terabytes when somebody copies it.
        changed[name] = torch.zeros(1).expand(10**6, 10**6)
    elif kind == 9:
        odd = [tensor.to_sparse(), tensor.to("meta"), tensor.to(torch.complex64)]
        changed[name] = draw.choice([*odd, 3, None, [tensor]])
    elif kind == 10:
        return draw.choice([[changed], 3, None, {0: tensor}, Code(canary)])
    else:
        changed[name] = Code(canary)
    return changed
