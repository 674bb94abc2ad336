"""A GPU made of fake tensors: training runs, nothing is computed, no GPU is needed.

Inside :func:`fake_gpu` tensors have shapes, dtypes and the device ``cuda``, and torch
takes every decision that hangs on these (autocast's rules, fused optimizers, attention
kernels) as on a GPU with bf16. Three things are done here that fake tensors alone
cannot do:

* what decides shapes or the program's way (lengths, masks, indices: whole numbers and
  booleans made of those of a batch) is computed on the side, on the CPU, so that
  ``x[mask]`` has the shape it has in training;
* the backward pass walks the graph node by node (:mod:`benchmarks.fake_backward`),
  since autograd's engine asks the driver;
* attention's kernel is chosen here by torch's rules, which ask the driver as well.
"""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

from benchmarks.fake_backward import run_backward

aten = torch.ops.aten
# Values are computed on the side up to so many; a batch's labels are far fewer.
MOST_VALUES = 2**21
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class Known:
    """Values of fake tensors, computed on the side; see the file's first lines."""

    def __init__(self) -> None:
        # Storages that something unknown was written into, kept so that no other
        # takes their addresses.
        self._spoilt: dict[int, Any] = {}

    def of(self, tensor: Tensor) -> Tensor | None:
        """Values of a tensor on the CPU, or ``None``."""
        if not isinstance(tensor, FakeTensor):
            return tensor
        found = getattr(tensor, "_known", None)
        if found is None or found.untyped_storage()._cdata in self._spoilt:
            return None
        return found

    def propagate(self, func: Any, args: tuple, kwargs: dict, output: Any) -> None:
        """Compute what is known of an operation's results."""
        tensors = [x for x in tree_flatten((args, kwargs))[0] if _is_tensor(x)]
        results = [x for x in tree_flatten(output)[0] if isinstance(x, FakeTensor)]
        on_gpu = any(x.device.type == "cuda" for x in results)
        random = torch.Tag.nondeterministic_seeded in func.tags
        unknown = any(self.of(x) is None for x in tensors)
        large = sum(x.numel() for x in results) > MOST_VALUES
        hollow = func._overloadpacket.__name__.startswith(("empty", "new_empty"))
        if unknown or large or hollow or (random and on_gpu) or not results:
            self._forget(func, args, kwargs)
            return
        with _disable_current_modes():
            found = func(*_here(self, args), **_here(self, kwargs))
        for fake, real in zip(
            results,
            [x for x in tree_flatten(found)[0] if _is_tensor(x)],
            strict=True,
        ):
            fake._known = real

    def _forget(self, func: Any, args: tuple, kwargs: dict) -> None:
        for number, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            for tensor in tree_flatten(value)[0]:
                if isinstance(tensor, FakeTensor):
                    real = self.of(tensor)
                    if real is not None:
                        storage = real.untyped_storage()
                        self._spoilt[storage._cdata] = storage


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _here(known: Known, values: Any) -> Any:
    def moved(value: Any) -> Any:
        if _is_tensor(value):
            return known.of(value)
        return torch.device("cpu") if isinstance(value, torch.device) else value

    return tree_map(moved, values)


class Dispatch(TorchDispatchMode):
    """Runs operations on fake tensors, and tells what ran.

    Args:
        note: Called with function, arguments and result of every operation, and with
            the kind of wait it means for the host: ``""``, ``"read"`` (the host waits
            for a value) or ``"write"`` (it waits until its own value has arrived).
    """

    def __init__(self, note: Callable[[Any, tuple, dict, Any, str], None]) -> None:
        super().__init__()
        self.note = note
        self.known = Known()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run one operation."""
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if packet is aten._local_scalar_dense:
            wait = "read" if args[0].device.type == "cuda" else ""
            value = self.scalar(args[0])
            self.note(func, args, kwargs, value, wait)
            return value
        with self:
            # Composite operations arrive whole where autograd is off.
            output = func.decompose(*args, **kwargs)
        if output is not NotImplemented:
            return output
        shaped, wait = args, ""
        if packet in INDEXING:
            shaped, wait = self._indices(packet, args)
        elif packet is aten.nonzero or packet is aten.masked_select:
            output = self._selected(packet, *args)
            wait = "read" if args[0].device.type == "cuda" else ""
            self.known.propagate(func, args, kwargs, output)
            self.note(func, args, kwargs, output, wait)
            return output
        output = func(*shaped, **kwargs)
        if packet in (aten._to_copy, aten.copy_):
            wait = _copy_wait(args, kwargs, output)
        self.known.propagate(func, args, kwargs, output)
        self.note(func, args, kwargs, output, wait)
        return output

    def scalar(self, tensor: Tensor) -> bool | int | float:
        """Value of one element: the known one, or 1."""
        known = self.known.of(tensor)
        if known is not None:
            with _disable_current_modes():
                return known.item()
        if tensor.dtype.is_floating_point:
            return 1.0
        return True if tensor.dtype == torch.bool else 1

    def count(self, mask: Tensor) -> int:
        """True elements of a mask; all where it is unknown."""
        known = self.known.of(mask)
        if known is None:
            return mask.numel()
        with _disable_current_modes():
            return int(known.count_nonzero())

    def _indices(self, packet: Any, args: tuple) -> tuple[tuple, str]:
        """Replace masks by as many indices as they have true elements."""
        masks = [x for x in args[1] if _is_mask(x)]
        if not masks:
            return args, ""
        if is_masked_fill(packet, args):
            return args, ""
        indices: list[Tensor | None] = []
        for index in args[1]:
            if _is_mask(index):
                shape = [self.count(index)]
                found = torch.empty(shape, dtype=torch.int64, device=index.device)
                indices += [found] * index.dim()
            else:
                indices.append(index)
        wait = "read" if args[0].device.type == "cuda" else ""
        return (args[0], indices, *args[2:]), wait

    def _selected(self, packet: Any, tensor: Tensor, *mask: Tensor) -> Tensor:
        count = self.count(mask[0] if mask else tensor)
        if mask:
            return torch.empty(count, dtype=tensor.dtype, device=tensor.device)
        shape = (count, tensor.dim())
        return torch.empty(shape, dtype=torch.int64, device=tensor.device)


def _is_mask(value: Any) -> bool:
    return _is_tensor(value) and value.dtype in (torch.bool, torch.uint8)


def is_masked_fill(packet: Any, args: tuple) -> bool:
    """Whether torch turns ``x[mask] = number`` into a fill, which needs no indices."""
    if packet is aten.index or len(args) < 3 or args[2].numel() != 1:
        return False
    accumulates = len(args) > 3 and args[3]
    given = [x for x in args[1] if x is not None]
    return not accumulates and len(given) == 1 and _is_mask(given[0])


def _copy_wait(args: tuple, kwargs: dict, output: Tensor) -> str:
    """Copies between host and GPU wait unless they are told not to."""
    source = args[0] if output is not args[0] else args[1]
    places = source.device.type, output.device.type
    quiet = kwargs.get("non_blocking") or (output is args[0] and len(args) > 2)
    if places == ("cuda", "cpu") and not quiet:
        return "read"
    if places == ("cpu", "cuda") and not quiet:
        return "write"
    return ""


class _Functions(TorchFunctionMode):
    """Calls the attention kernel that a GPU with bf16 would take."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        attends = func is F.scaled_dot_product_attention
        if attends and args[0].device.type == "cuda":
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention of ``[B, H, T, d]`` by the rules of torch's ``sdp_utils.cpp``.

    Flash wants half precision and no mask; the memory-efficient kernel takes float32
    and an additive mask, whose rows it wants aligned to 16 values.
    """
    if torch.is_autocast_enabled("cuda"):
        # It is on autocast's list of what runs in half precision.
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = (x.to(dtype) for x in (query, key, value))
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(dtype)
    size, length = query.shape[-1], key.shape[-2]
    half = query.dtype in (torch.bfloat16, torch.float16)
    with torch.autocast("cuda", enabled=False):
        if half and attn_mask is None and size <= 256:
            pad = -size % 8
            scale = 1 / math.sqrt(size) if scale is None else scale
            if pad:
                query, key, value = (F.pad(x, (0, pad)) for x in (query, key, value))
            output = aten._scaled_dot_product_flash_attention(
                query, key, value, dropout_p, is_causal, False, scale=scale
            )[0]
            return output[..., :size]
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                fill = torch.zeros_like(attn_mask, dtype=query.dtype)
                attn_mask = fill.masked_fill_(attn_mask.logical_not(), -torch.inf)
            if rest := -length % 16:
                attn_mask = F.pad(attn_mask, (0, rest))[..., :length]
            attn_mask = attn_mask.expand(*query.shape[:-1], length)
        needs = torch.is_grad_enabled() and any(
            x.requires_grad for x in (query, key, value)
        )
        return aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, needs, dropout_p, is_causal, scale=scale
        )[0]


def to_fake_gpu(module: nn.Module) -> nn.Module:
    """Put a module built on the meta device onto the fake GPU, in place."""

    def moved(tensor: Tensor) -> Tensor:
        return torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda"
        )

    return module._apply(moved)


def on_fake_gpu(tensor: Tensor) -> Tensor:
    """Return a fake of a CPU tensor; whole numbers and booleans keep their values."""
    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
    if not tensor.dtype.is_floating_point:
        fake._known = getattr(tensor, "_known", tensor)
    return fake


@contextlib.contextmanager
def fake_gpu(
    note: Callable[[Any, tuple, dict, Any, str], None],
    around_backward: Callable[[], contextlib.AbstractContextManager] = (
        contextlib.nullcontext
    ),
) -> Iterator[Dispatch]:
    """Let ``cuda`` be a GPU of fake tensors; see the file's first lines.

    Args:
        note: See :class:`Dispatch`.
        around_backward: Entered around each backward pass.
    """
    dispatch = Dispatch(note)

    def backward(tensor: Tensor, *args: Any, **options: Any) -> None:
        with around_backward():
            run_backward(tensor, *args, **options)

    def values(tensor: Tensor) -> Tensor:
        known = dispatch.known.of(tensor)
        with _disable_current_modes():
            known = torch.ones(tensor.shape) if known is None else known
        return known

    def tolist(tensor: Tensor) -> Any:
        if tensor.device.type == "cuda":
            note(aten._local_scalar_dense.default, (tensor,), {}, None, "read")
        return values(tensor).tolist()

    def numpy(tensor: Tensor, *_: Any, **__: Any) -> Any:
        return values(tensor).numpy()

    properties = SimpleNamespace(
        name="fake",
        total_memory=80 * 2**30,
        major=9,
        minor=0,
        multi_processor_count=132,
    )
    stream = SimpleNamespace(is_capturing=lambda: False)
    replaced: list[tuple[Any, str, Any]] = [
        (fake_tensor, "init_gpu_context", lambda *_: None),
        (torch.Tensor, "backward", backward),
        (FakeTensor, "tolist", tolist),
        (FakeTensor, "numpy", numpy),
        # Recomputed layers are kept for one backward pass, known by this number.
        (torch._C, "_current_graph_task_id", lambda: 1),
        # It replaces the device guard of a GPU that is not there by an idle one, and
        # numbers become tensors on the host first, and then go to the GPU.
        (FakeTensorMode, "avoid_device_init", property(lambda _: True)),
        (torch.accelerator, "current_stream", lambda *_: stream),
    ]
    replaced += [
        (torch.cuda, name, lambda *_, _value=value, **__: _value)
        for name, value in {
            "is_available": True,
            "is_initialized": True,
            "is_bf16_supported": True,
            "device_count": 1,
            "current_device": 0,
            "is_current_stream_capturing": False,
            "get_device_name": properties.name,
            "get_device_properties": properties,
            "get_device_capability": (9, 0),
            "mem_get_info": (80 * 2**30, 80 * 2**30),
            **dict.fromkeys(("_lazy_init", "init", "set_device", "synchronize")),
            "Event": SimpleNamespace(
                record=lambda *_: None, synchronize=lambda *_: None
            ),
        }.items()
    ]
    # Fused and for-each forms are for plain tensors, which these stand for.
    plain = [
        _foreach_utils._foreach_supported_types,
        sys.modules[torch.optim.Optimizer.__module__]._foreach_supported_types,
    ]
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(mock.patch.object(owner, name, value, create=True))
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        for types in plain:
            types.append(FakeTensor)
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), dispatch, _Functions():
                yield dispatch
        finally:
            for types in plain:
                types.remove(FakeTensor)
            torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
