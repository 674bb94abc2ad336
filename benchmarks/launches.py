"""Count what a GPU would be asked to do: kernels, casts, bytes, operations, waits.

The rules, which hold for every version of the code alike:

* Kernel: a call of an operation of torch (below autograd and autocast, where composite
  operations are taken apart) that reads or writes a tensor on the GPU. Views,
  allocations and questions about a tensor are none (:data:`NO_KERNEL`), nor is what
  has no elements. One call is one kernel, though some of torch's operations launch two
  or three (the backward pass of a LayerNorm or of attention); but
* a mask as index costs one more, the search for its true elements, and
* operations on lists of tensors (``_foreach_*``, ``_fused_adamw_``) cost the launches
  of torch's multi-tensor-apply, see :func:`launches_of_list`.
* Cast: a copy on the GPU whose result has another dtype. Casts are kernels.
* Bytes moved: the inputs and outputs of kernels, each tensor once per kernel, an
  expanded one as large as its storage. Caches are taken not to help.
* FLOP: those of matrix products, convolutions and attention, by torch's own formulas.
* Wait: the host waits for the GPU, because it reads a value (``item``, ``tolist``, a
  copy to the host, the number of true elements of a mask) or because it copies a value
  to the GPU from memory that is not pinned, which torch waits for. A copy that is told
  not to block is none: who picks its values up after the next work was given to the GPU
  leaves it busy.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

from benchmarks.fake_gpu import INDEXING, is_masked_fill

aten = torch.ops.aten
# Beside views, which an operation's schema tells.
NO_KERNEL = {
    *(aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty),
    *(aten.new_empty_strided, aten.detach, aten.detach_, aten.alias, aten.lift),
    *(aten.lift_fresh, aten._unsafe_view, aten._reshape_alias, aten.set_),
    *(aten.resize_, aten.record_stream, aten._local_scalar_dense, aten.is_same_size),
    *(aten.sym_size, aten.sym_numel, aten.sym_stride, aten.sym_storage_offset),
    aten.is_pinned,
}
CASTS = {aten._to_copy, aten.copy_}
# Constants of torch's MultiTensorApply.cuh: values of a chunk, chunks of a launch, and
# tensors of a launch where an operation has 1, 2, ... lists.
CHUNK = 65536
CHUNKS = 320
TENSORS = (110, 64, 48, 36, 30)
# Lists in which an operation's scalars travel, too, leave less room.
TENSORS_WITH_SCALARS = (96, 64, 48, 36, 30)


def launches_of_list(sizes: Sequence[int], lists: int, scalars: bool = False) -> int:
    """Launches of one multi-tensor operation, as ``MultiTensorApply.cuh`` makes them.

    Args:
        sizes: Values of each tensor.
        lists: Lists that are read or written, e.g. 2 for ``a += b``.
        scalars: Whether every tensor has a scalar of its own.
    """
    room = (TENSORS_WITH_SCALARS if scalars else TENSORS)[min(lists, 5) - 1]
    launches = tensors = blocks = 0
    for size in sizes:
        chunks = -(-size // CHUNK)
        if not chunks:
            continue
        tensors += 1
        for chunk in range(chunks):
            blocks += 1
            last = chunk == chunks - 1
            if (tensors == room and last) or blocks == CHUNKS:
                launches += 1
                blocks, tensors = 0, 0 if last else 1
    return launches + bool(blocks)


def _tensors(value: Any) -> list[Tensor]:
    return [x for x in tree_flatten(value)[0] if isinstance(x, Tensor)]


def _on_gpu(tensors: list[Tensor]) -> bool:
    return any(x.device.type == "cuda" for x in tensors)


def kernels(func: Any, args: tuple, kwargs: dict, output: Any) -> int:
    """Kernels that one operation launches; see the file's first lines."""
    packet = func._overloadpacket
    name = packet.__name__
    if func.namespace == "prim" or func.is_view or packet in NO_KERNEL:
        return 0
    inputs, results = _tensors((args, kwargs)), _tensors(output)
    written = results or inputs
    if not _on_gpu(inputs + results) or not sum(x.numel() for x in written):
        return 0
    if name.startswith(("_foreach_", "_fused_")):
        return _of_lists(name, args, results)
    if packet in CASTS:
        places = {x.device.type for x in (*inputs, *results)}
        return int(places == {"cuda"})
    if packet in INDEXING and not is_masked_fill(packet, args):
        return 1 + sum(_is_mask(index) for index in args[1])
    return 1


def _of_lists(name: str, args: tuple, results: list[Tensor]) -> int:
    lists = [x for x in args if isinstance(x, list | tuple) and _tensors(x)]
    lists = [[x for x in tensors if isinstance(x, Tensor)] for tensors in lists]
    lists = [tensors for tensors in lists if _on_gpu(tensors)]
    if not lists:
        return 0
    if name.startswith("_fused_"):
        # The last list has the numbers of the updates, which are not chunked.
        lists = lists[:-1]
    # In place the result is one of the lists.
    out_of_place = not name.endswith("_") and name not in ("_foreach_norm",)
    depth = len(lists) + out_of_place
    scalars = any(
        isinstance(x, list | tuple) and x and isinstance(x[0], int | float)
        for x in args
    )
    sizes = [x.numel() for x in lists[0]]
    found = launches_of_list(sizes, depth, scalars)
    # A norm of chunks, then one of them all.
    return found + (name == "_foreach_norm")


def _is_mask(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.bool, torch.uint8)


def is_cast(func: Any, args: tuple, output: Any) -> bool:
    """Whether an operation on the GPU only changes a dtype."""
    if func._overloadpacket not in CASTS:
        return False
    source = args[1] if func._overloadpacket is aten.copy_ else args[0]
    same_place = source.device.type == output.device.type == "cuda"
    return same_place and source.dtype != output.dtype and output.numel() > 0


def moved(args: tuple, kwargs: dict, output: Any) -> int:
    """Bytes of an operation's inputs and outputs on the GPU."""
    total = 0
    for values in ((args, kwargs), output):
        for tensor in {id(x): x for x in _tensors(values)}.values():
            if tensor.device.type == "cuda":
                size = tensor.element_size()
                total += min(tensor.numel() * size, tensor.untyped_storage().nbytes())
    return total


class Operations(TorchDispatchMode):
    """Counts operations that compute something, on whatever device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Count one operation, and run it."""
        hollow = func.is_view or func._overloadpacket in NO_KERNEL
        self.count += not hollow and func.namespace != "prim"
        return func(*args, **(kwargs or {}))


@dataclass
class Count:
    """What one part of an update asks a GPU to do."""

    kernels: int = 0
    casts: int = 0
    bytes: int = 0
    flops: int = 0
    reads: int = 0
    writes: int = 0

    @property
    def waits(self) -> int:
        """How often the host waits for the GPU."""
        return self.reads + self.writes

    def __add__(self, other: "Count") -> "Count":
        """Add two parts."""
        names = self.__dataclass_fields__
        return Count(**{n: getattr(self, n) + getattr(other, n) for n in names})

    def __mul__(self, factor: int) -> "Count":
        """Repeat a part."""
        names = self.__dataclass_fields__
        return Count(**{n: getattr(self, n) * factor for n in names})


@dataclass
class Counting:
    """Counts operations by the part of an update in which they run.

    ``operations`` has the kernels of each operation by name, ``waits`` where the
    host waited.
    """

    parts: dict[str, Count] = field(default_factory=dict)
    operations: Counter = field(default_factory=Counter)
    waits: Counter = field(default_factory=Counter)
    part: str = "forward"

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Count what runs inside as ``part``."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def note(
        self, func: Any, args: tuple, kwargs: dict, output: Any, wait: str
    ) -> None:
        """Count one operation; see :class:`benchmarks.fake_gpu.Dispatch`."""
        launched = kernels(func, args, kwargs, output)
        name = func._overloadpacket.__name__
        if not launched and not wait:
            return
        count = self.parts.setdefault(self.part, Count())
        if launched:
            count.kernels += launched
            count.casts += is_cast(func, args, output)
            count.bytes += moved(args, kwargs, output)
            self.operations[name] += launched
            formula = flop_registry.get(func._overloadpacket)
            if formula is not None:
                count.flops += formula(*args, **kwargs, out_val=output)
        if wait:
            count.reads += wait == "read"
            count.writes += wait == "write"
            self.waits[f"{self.part}: {caller()}"] += 1


def caller() -> str:
    """File, line and function outside of torch and of this folder that runs now."""
    import sys
    from pathlib import Path

    here, torch_folder = Path(__file__).parent, Path(torch.__file__).parent
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if here not in path.parents and torch_folder not in path.parents:
            if path.suffix == ".py":
                return f"{path.name}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "?"
