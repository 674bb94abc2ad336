"""A GPU that is not there: real values on the CPU, under the rules of a device.

Between :func:`pretended_gpu` and its end ``"cuda"`` names a device that holds
tensors of this file's class. They are computed on the CPU, so everything has a value,
trains, is saved and resumed; but they refuse what a GPU refuses:

- an operation on tensors of both places (a scalar beside an elementwise operation is
  no fault, nor is a copy);
- ``numpy()``, or an array made of them;
- a random generator of the other place: the device has its own random numbers;
- a collective of the CPU's tensors, which NCCL does not know;
- a file that is read without saying to where.

Everything that makes the host wait for the device (``item``, ``tolist``, ``cpu``, a
boolean index) is counted by the function that did it.
"""

import contextlib
import copy
import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import espnet2_lamer
from espnet2_lamer.layers import packing, products

GPU = torch.device("cuda", 0)
ATEN = torch.ops.aten
PACKAGE = Path(espnet2_lamer.__file__).parent
# Tensors of both places, or a scalar of the other one, are no fault here.
COPIES = {ATEN.copy_.default, ATEN._to_copy.default}
SCALARS = {
    ATEN.index_put.default,
    ATEN.index_put_.default,
    ATEN.masked_fill.Tensor,
    ATEN.masked_fill_.Tensor,
    ATEN.fill_.Tensor,
}
INDEXING = {ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default}
# Calls whose result is on the host.
HOST = {
    torch.Tensor.item,
    torch.Tensor.tolist,
    torch.Tensor.__bool__,
    torch.Tensor.__float__,
    torch.Tensor.__int__,
    torch.Tensor.__index__,
}
# Operations whose result, or its shape, depends on values.
READS = {
    ATEN._local_scalar_dense.default,
    ATEN.equal.default,
    ATEN.nonzero.default,
    ATEN.masked_select.default,
    ATEN._unique2.default,
}


class GpuTensor(torch.Tensor):
    """A tensor on the pretended device; ``here`` shares its memory."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    here: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "GpuTensor":
        inner = inner.detach()
        tensor = torch.Tensor._make_subclass(cls, inner, False)
        tensor.here = inner
        return tensor

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return GPU.index

    def __repr__(self) -> str:
        return f"GpuTensor({self.here})"

    def __deepcopy__(self, memo: dict) -> "GpuTensor":
        if id(self) not in memo:
            copied = type(self)(copy.deepcopy(self.here))
            memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: int) -> tuple:
        return self.here.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} on a tensor of a pretended GPU that has gone")


class _Move(torch.autograd.Function):
    """A copy to the other place, with a gradient that is copied back."""

    @staticmethod
    def forward(ctx, tensor):
        return _inner(tensor).clone() if _on_gpu(tensor) else GpuTensor(tensor.clone())

    @staticmethod
    def backward(ctx, gradient):
        return _Move.forward(ctx, gradient)


class PretendedGpu:
    """What a test can ask of the device.

    Attributes:
        reads: How often each function made the host wait, ``module.function``.
        messages: Collectives of ranks.
        generator: The device's random numbers.
    """

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()
        self.messages = 0
        self.generator = torch.Generator()

    def note_read(self) -> None:
        """Count the innermost function of the package, or else of who reads."""
        frame, outer = sys._getframe(1), None
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PACKAGE):
                outer = path.relative_to(PACKAGE).with_suffix("").parts
                break
            frame = frame.f_back
        if outer is None:
            self.reads["elsewhere"] += 1
        else:
            # Until Python 3.11 a comprehension is a function of its own.
            name = frame.f_code.co_qualname.removesuffix(".<locals>.<listcomp>")
            self.reads[".".join([*outer, name])] += 1


class _Dispatch(TorchDispatchMode):
    """Every operation: where its tensors are, and where its result goes."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        values = [*_leaves(args), *_leaves(kwargs)]
        on_gpu = any(isinstance(x, GpuTensor) for x in values)
        target = kwargs.get("device")
        if on_gpu and torch._C._current_graph_task_id() != -1:
            # Gradients are made in C++, which knows the CPU only.
            target = None
        goes_to_gpu = on_gpu if target is None else _is_gpu(target)
        if func.namespace == "c10d":
            self.gpu.messages += 1
            return _collective(func, args, values)
        if not (on_gpu or goes_to_gpu):
            return func(*args, **kwargs)
        if target is not None:
            kwargs["device"] = torch.device("cpu") if _is_gpu(target) else target
        if on_gpu:
            _check_places(func, args, values)
            if _is_read(func, args):
                self.gpu.note_read()
        _check_generator(func, values, goes_to_gpu)
        known = {id(x.here): x for x in values if isinstance(x, GpuTensor)}
        with self._random_numbers(func, goes_to_gpu):
            found = func(*_mapped(_inner, args), **_mapped(_inner, kwargs))

        def wrap(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            if id(value) in known:  # changed in place
                return known[id(value)]
            return GpuTensor(value) if goes_to_gpu else value

        return _mapped(wrap, found)

    @contextlib.contextmanager
    def _random_numbers(self, func: Any, on_gpu: bool) -> Iterator[None]:
        if not on_gpu or torch.Tag.nondeterministic_seeded not in func.tags:
            yield
            return
        host = torch.get_rng_state()
        torch.set_rng_state(self.gpu.generator.get_state())
        yield
        self.gpu.generator.set_state(torch.get_rng_state())
        torch.set_rng_state(host)


class _Functions(TorchFunctionMode):
    """Calls that torch decides in C++, where a tensor's place is the CPU."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        first = args[0] if args else None
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            return self._construct(func, args, kwargs)
        if func in (torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu):
            return self._move(func, first, args[1:], kwargs)
        if func is torch.Tensor.pin_memory:
            return first
        if func is torch._C._nn.pad_sequence and all(map(_on_gpu, first)):
            # It makes its result in C++, and copies into it.
            return GpuTensor(func(_mapped(_inner, first), *args[1:], **kwargs))
        if isinstance(first, GpuTensor):
            if func is torch.Tensor.numpy or name == "__array__":
                raise TypeError(
                    "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()"
                )
            if func in HOST:
                self.gpu.note_read()
                return func(first.here)
            if func is torch.Tensor.new_tensor:
                return GpuTensor(first.here.new_tensor(*args[1:], **kwargs))
        return func(*args, **kwargs)

    def _construct(self, func: Any, args: tuple, kwargs: dict) -> Any:
        device = kwargs.pop("device", None)
        if isinstance(args[0], GpuTensor):
            return args[0].to(
                **({} if device is None else {"device": device}), **kwargs
            )
        made = func(*args, **kwargs, device=None if _is_gpu(device) else device)
        return GpuTensor(made) if _is_gpu(device) else made

    def _move(self, func: Any, tensor: Any, args: tuple, kwargs: dict) -> Any:
        if func is torch.Tensor.to:
            if args and _is_tensor(args[0]):
                args = (args[0].device, args[0].dtype)
            values = [*args, *kwargs.values()]
            dtype = next((x for x in values if isinstance(x, torch.dtype)), None)
            device = next(
                (x for x in values if isinstance(x, str | torch.device)), None
            )
            tensor = tensor if dtype is None else torch.Tensor.to(tensor, dtype)
            tensor = tensor.clone() if kwargs.get("copy") else tensor
        else:
            device = "cuda" if func is torch.Tensor.cuda else "cpu"
        if device is None or _is_gpu(device) == _on_gpu(tensor):
            return tensor if _on_gpu(tensor) else func(tensor, *args, **kwargs)
        if _on_gpu(tensor) and not kwargs.get("non_blocking"):
            self.gpu.note_read()
        return _Move.apply(tensor)


def _mapped(function: Callable, value: Any) -> Any:
    """Apply to an operation's values; torch's own tree_map takes ten times as long."""
    if isinstance(value, tuple | list):
        return type(value)([_mapped(function, x) for x in value])
    if isinstance(value, dict):
        return {key: _mapped(function, x) for key, x in value.items()}
    return function(value)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        yield value
        return
    for item in value:
        yield from _leaves(item)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _on_gpu(value: Any) -> bool:
    return isinstance(value, GpuTensor)


def _inner(value: Any) -> Any:
    return value.here if isinstance(value, GpuTensor) else value


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _is_mask(value: Any) -> bool:
    return _is_tensor(value) and value.dtype in (torch.bool, torch.uint8)


def _is_read(func: Any, args: tuple) -> bool:
    return func in READS or (func in INDEXING and any(map(_is_mask, args[1])))


def _check_places(func: Any, args: tuple, values: list) -> None:
    """Refuse tensors of two places, as torch does."""
    others = [x for x in values if _is_tensor(x) and not _on_gpu(x)]
    if func in COPIES or not others:
        return
    if torch.Tag.pointwise in func.tags or func in SCALARS:
        others = [x for x in others if x.dim()]
    if func in INDEXING and _on_gpu(args[0]):
        # Numbers may come from the host, e.g. a list; torch would copy a mask, too,
        # but in silence.
        numbers = {id(x) for x in args[1] if _is_tensor(x) and not _is_mask(x)}
        others = [x for x in others if id(x) not in numbers]
    if others:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two "
            f"devices, cuda:0 and cpu! ({func}, {[tuple(x.shape) for x in others]})"
        )


def _check_generator(func: Any, values: list, on_gpu: bool) -> None:
    if on_gpu and any(isinstance(x, torch.Generator) for x in values):
        raise RuntimeError(
            f"Expected a 'cuda' device type for generator but found 'cpu' ({func})"
        )


def _collective(func: Any, args: tuple, values: list) -> Any:
    if any(_is_tensor(x) and not _on_gpu(x) for x in values):
        raise RuntimeError(f"No backend type associated with device type cpu ({func})")
    return func(*_mapped(_inner, args))


def _load(gpu: PretendedGpu, load: Callable) -> Callable:
    """``torch.load`` that puts tensors where it is told."""

    def loaded(file: Any, map_location: Any = None, **options: Any) -> Any:
        if map_location is None:
            raise RuntimeError(f"{file}: torch.load without map_location")
        on_gpu = _is_gpu(map_location)
        found = load(file, map_location="cpu" if on_gpu else map_location, **options)
        if not on_gpu:
            return found
        return _mapped(lambda x: GpuTensor(x) if _is_tensor(x) else x, found)

    return loaded


def _autocast(autocast: type) -> type:
    """``torch.autocast`` whose "cuda" is the CPU's, whose kernels compute here."""

    class Autocast(autocast):
        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__(
                "cpu" if _is_gpu(device_type) else device_type, *args, **kwargs
            )

    return Autocast


def _grouped(group: Callable) -> Callable:
    """Gradients by device and dtype, told apart in C++."""

    def grouped(tensors: list, *options: Any) -> dict:
        return {
            (GPU if _on_gpu(found[0][0]) else device, dtype): (found, rows)
            for (device, dtype), (found, rows) in group(tensors, *options).items()
        }

    return grouped


def _varlen_attention(q: Any, k: Any, v: Any, starts: Any, *_: Any) -> Any:
    """Attention within each span of ``[R, H, d]``; the kernel asks the host nothing."""
    spans = _inner(starts).diff().tolist()
    parts = zip(*(x.split(spans) for x in (q, k, v)), strict=True)
    found = []
    for own in parts:
        each = [x.transpose(0, 1) for x in own]
        y = torch.nn.functional.scaled_dot_product_attention(*each)
        found.append(y.transpose(0, 1))
    return torch.cat(found)


@contextlib.contextmanager
def pretended_gpu() -> Iterator[PretendedGpu]:
    """Let ``"cuda"`` name a device of this process; see the file's first lines."""
    gpu = PretendedGpu()
    properties = SimpleNamespace(name="pretended", total_memory=2**36, major=9, minor=0)
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "is_available": True,
            "is_initialized": True,
            "is_bf16_supported": True,
            "device_count": 1,
            "current_device": GPU.index,
            "is_current_stream_capturing": False,
            "_is_in_bad_fork": False,
            "get_device_name": properties.name,
            "get_device_properties": properties,
            "get_device_capability": (properties.major, properties.minor),
            "memory_allocated": 0,
            "max_memory_allocated": 0,
            "memory_reserved": 0,
            "mem_get_info": (properties.total_memory, properties.total_memory),
            **dict.fromkeys(
                ("_lazy_init", "init", "set_device", "synchronize", "empty_cache")
                + ("reset_peak_memory_stats",)
            ),
            # Everything has been computed when it is asked for.
            "Event": SimpleNamespace(
                record=lambda *_: None, synchronize=lambda *_: None
            ),
        }.items():
            patch.setattr(torch.cuda, name, lambda *_, _value=value, **__: _value)
        for name, function in {
            "get_rng_state": lambda *_: gpu.generator.get_state(),
            "get_rng_state_all": lambda: [gpu.generator.get_state()],
            "set_rng_state": lambda state, *_: gpu.generator.set_state(state),
            "set_rng_state_all": lambda states: [*map(gpu.generator.set_state, states)],
            "manual_seed": gpu.generator.manual_seed,
            "manual_seed_all": gpu.generator.manual_seed,
        }.items():
            patch.setattr(torch.cuda, name, function)
        name = "_group_tensors_by_device_and_dtype"
        optimizers = importlib.import_module("torch.optim.optimizer")
        for module in (torch.nn.utils.clip_grad, optimizers):
            patch.setattr(module, name, _grouped(getattr(module, name)))
        # torch 2.14's optimizers ask this instead of is_current_stream_capturing.
        stream = SimpleNamespace(is_capturing=lambda: False)
        patch.setattr(torch.accelerator, "current_stream", lambda *_: stream)
        patch.setattr(torch, "load", _load(gpu, torch.load))
        patch.setattr(torch, "autocast", _autocast(torch.autocast))
        # Kernels that only GPUs have.
        patch.setattr(products, "wide_product", lambda a, b: a.float() @ b.float())
        patch.setattr(packing, "varlen_attn", _varlen_attention)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with _Dispatch(gpu), _Functions(gpu):
                yield gpu
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
