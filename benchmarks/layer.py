"""Section ``layer``: one expert layer, forward and backward, in six forms."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchaudio.models.wav2vec2.components import FeedForward

from benchmarks.experts import PEERS, FrozenLinear, OneLoRA, PeerExperts, Routed
from benchmarks.harness import Case, Timings, autocast, interleave, synchronizer
from benchmarks.memory import saved_bytes
from benchmarks.options import option
from benchmarks.report import Table, megabytes, verdict
from espnet2_lamer.layers import LamerConfig, LamerFeedForward, LoRAExpertLinear

TITLE = "expert layer, forward and backward"
DEVICES = ("cpu", "cuda")
FROZEN, LORA, OURS = "frozen", "one LoRA, no router", "ours"
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Options:
    """Sizes; the defaults are those of HuBERT-Large's feed-forward layers."""

    tokens: int | None = option(None, "frames; 1000 on a CPU, 16384 on a GPU", int)
    dim: int = option(1024, "width of the model")
    inner: int = option(4096, "width inside the FFN")
    rank: int = option(12, "rank of an expert")
    experts: tuple[int, ...] = option((2, 4, 8), "numbers of experts")
    dtypes: tuple[str, ...] = option(("fp32", "bf16"), "fp32, bf16 (autocast)")
    rounds: int = option(15, "timed rounds")


QUICK = Options(8, dim=32, inner=64, rank=2, experts=(2, 4), rounds=2)


@dataclass(frozen=True)
class Setting:
    """How many experts there are and how many a frame uses (``None``: all)."""

    experts: int
    top_k: int | None

    def __str__(self) -> str:
        """Format for a table."""
        if self.top_k is None:
            return f"N = {self.experts}, soft"
        same = " = soft" if self.top_k == self.experts else ""
        return f"N = {self.experts}, top-{self.top_k}{same}"


def settings(experts: tuple[int, ...]) -> list[Setting]:
    """Top-2 and soft routing for every N; for N = 2 they are the same."""
    return [
        Setting(number, top_k)
        for number in experts
        for top_k in ((2,) if number == 2 else (2, None))
    ]


def build_forms(setting: Setting, options: Options, ffn: bool) -> dict[str, nn.Module]:
    """Build all forms on the same random weights.

    Args:
        setting: Experts and routing.
        options: Sizes.
        ffn: The whole FFN with one router, else its first Linear with that router.

    Returns:
        Modules ``[T, dim] -> [T, dim]`` (``[T, inner]`` for one Linear), by name.
    """
    torch.manual_seed(0)
    config = LamerConfig(
        allocation=setting.experts, rank=options.rank, top_k=setting.top_k
    )
    feed_forward = FeedForward(options.dim, options.inner, 0.0, 0.0)
    ours = LamerFeedForward(feed_forward, setting.experts, config)
    router = ours.routers["ffn"]
    linears = [ours.intermediate_dense] + [ours.output_dense] * ffn
    for linear in linears:
        nn.init.normal_(linear.lora_B, std=0.1)
    forms: dict[str, nn.Module] = {
        FROZEN: Routed(None, *map(FrozenLinear, linears)),
        LORA: Routed(None, *map(OneLoRA, linears)),
    }
    for name, peer in PEERS.items():
        forms[name] = Routed(router, *map(peer, linears))
    forms[OURS] = ours if ffn else Routed(router, *linears)
    return forms


def outcome(form: nn.Module, x: Tensor, seed: int = 1) -> list[Tensor]:
    """Output and all gradients, the experts' in our shapes, for a fixed seed."""
    x = x.detach().requires_grad_()
    form.zero_grad()
    y = form(x)
    generator = torch.Generator().manual_seed(seed)
    y.backward(torch.randn(y.shape, generator=generator).to(y))
    found = [y.detach(), x.grad]
    for module in form.modules():
        if isinstance(module, PeerExperts):
            found += module.expert_gradients()
        elif isinstance(module, LoRAExpertLinear):
            found += [module.lora_A.grad.clone(), module.lora_B.grad.clone()]
    routers = [m for name, m in form.named_modules() if name.split(".")[-1] == "router"]
    routers += list(getattr(form, "routers", {}).values())
    return found + [router.weight.grad.clone() for router in routers]


def disagreement(form: nn.Module, ours: nn.Module, x: Tensor) -> float:
    """Largest difference from ours, relative to the largest value of that tensor."""
    pairs = zip(outcome(form, x), outcome(ours, x), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def check_forms(forms: dict[str, nn.Module], x: Tensor) -> float:
    """Compare every peer's values and gradients with ours in float32.

    Returns:
        The largest disagreement.

    Raises:
        RuntimeError: It is above 1e-5: the forms do not compute the same thing.
    """
    found = {name: disagreement(forms[name], forms[OURS], x) for name in PEERS}
    name = max(found, key=found.get)
    if not found[name] <= TOLERANCE:
        raise RuntimeError(
            f"{name} differs from ours by {found[name]:.1e} (relative), expected at "
            f"most {TOLERANCE:.0e}: the comparison would mean nothing"
        )
    return found[name]


class _OperatorCount(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def count_operators(form: nn.Module, x: Tensor) -> int:
    """Operators dispatched in forward and backward: nearly, the kernels launched."""
    x = x.detach().requires_grad_()
    form.zero_grad()
    with _OperatorCount() as counter:
        form(x).sum().backward()
    return counter.count


def input_dtype(device: str, dtype: str) -> torch.dtype:
    """What reaches an FFN inside the model: a LayerNorm's output under autocast.

    With bf16 that is bf16 on a CPU and float32 on a GPU.
    """
    projection, norm = nn.Linear(2, 2, device=device), nn.LayerNorm(2, device=device)
    with autocast(device, dtype):
        return norm(projection(torch.ones(1, 2, device=device))).dtype


def waits_for_device(form: nn.Module, x: Tensor) -> bool:
    """Whether the forward pass makes the host wait for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        form(x)
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def timed_case(form: nn.Module, x: Tensor, device: str, dtype: str) -> Case:
    """Forward and backward of one form; gradients are dropped outside the clock."""
    parameters = [p for p in form.parameters() if p.requires_grad]

    def forward() -> Tensor:
        with autocast(device, dtype):
            return form(x)

    upstream = torch.randn_like(forward())

    def prepare() -> None:
        for tensor in (x, *parameters):
            tensor.grad = None

    return Case(lambda: forward().backward(upstream), prepare)


def targets(
    name: str,
    setting: Setting,
    timings: Timings,
    kept: dict[str, int],
    device: str,
    ffn: bool,
) -> str:
    """The project's targets that this row decides, with met or missed."""
    if name == OURS:
        limit = 1.15 if setting.experts <= 4 else 1.30
        ratio = timings.ratio(OURS, LORA).median
        return f"{ratio:.2f}x one LoRA, {verdict(ratio, '<=', limit)}"
    if name not in PEERS:
        return ""
    is_loop = "loop" in name
    strict = device == "cuda" and setting.experts == 8 and is_loop
    slower = timings.ratio(name, OURS).median
    text = f"{slower:.2f}x our time, " + (
        verdict(slower, ">=", 2) if strict else verdict(slower, ">", 1)
    )
    if is_loop and not ffn:
        more = kept[name] / max(kept[OURS], 1)
        text += f"; {more:.0f}x our memory, {verdict(more, '>=', 20)}"
    return text


def measure(
    setting: Setting, options: Options, device: str, dtype: str, ffn: bool
) -> tuple[list[list[str]], float]:
    """Check and time all forms of one setting.

    Returns:
        Rows for the table, and the largest disagreement with ours.
    """
    forms = build_forms(setting, options, ffn)
    operators = {
        name: count_operators(form, torch.randn(64, options.dim))
        for name, form in forms.items()
    }
    x = torch.randn(options.tokens, options.dim, device=device, requires_grad=True)
    for form in forms.values():
        form.to(device)
    difference = check_forms(forms, x)
    x = x.detach().to(input_dtype(device, dtype)).requires_grad_()
    kept, waits = {}, {}
    for name, form in forms.items():
        with autocast(device, dtype):
            known = [x, *form.parameters(), *form.buffers()]
            kept[name] = saved_bytes(partial(form, x), known)
            waits[name] = device == "cuda" and waits_for_device(form, x)
    kept = {name: size - kept[FROZEN] for name, size in kept.items()}
    timings = interleave(
        {name: timed_case(form, x, device, dtype) for name, form in forms.items()},
        options.rounds,
        warmup=2,
        synchronize=synchronizer(device),
        description=f"layer {device} {dtype} {setting}",
    )
    rows = []
    for name in forms:
        row = [
            str(setting),
            name,
            f"{1e3 * timings.median(name):.2f}",
            f"{timings.ratio(name, FROZEN).median:.2f}",
            str(timings.ratio(name, LORA)),
            megabytes(kept[name]),
            str(operators[name]),
        ]
        if device == "cuda":
            row.append("waits" if waits[name] else "no")
        rows.append([*row, targets(name, setting, timings, kept, device, ffn)])
    return rows, difference


def run(options: Options, device: str) -> list[str | Table]:
    """Measure all settings; returns text and tables."""
    if options.tokens is None:
        tokens = 16384 if device == "cuda" else 1000
        options = Options(**(vars(options) | {"tokens": tokens}))
    header = [
        "setting",
        "form",
        "ms",
        "time / frozen",
        "time / one LoRA",
        "extra MB kept for backward",
        "operators",
        *(["host waits in forward"] if device == "cuda" else []),
        "target",
    ]
    blocks: list[str | Table] = []
    worst = 0.0
    for ffn in (False, True):
        what = (
            f"whole FFN {options.dim} -> {options.inner} -> {options.dim}"
            if ffn
            else f"Linear {options.dim} -> {options.inner}"
        )
        for dtype in options.dtypes:
            table = Table(f"{what}, {dtype}", header)
            for setting in settings(options.experts):
                rows, difference = measure(setting, options, device, dtype, ffn)
                table.rows += rows
                worst = max(worst, difference)
            blocks.append(table)
    explanation = (
        f"{options.tokens} frames, rank {options.rank}, {options.rounds} rounds; the "
        "input has the type that a LayerNorm gives it in the model. Every mixture "
        f"includes the same router; `{LORA}` is plain LoRA. Before timing, each peer's "
        "form (written here from its description) gave our outputs and gradients "
        "(input, router, experts) in float32; the largest relative difference was "
        f"{worst:.1e} (limit {TOLERANCE:.0e}). Extra memory is what autograd keeps "
        "beyond inputs, parameters and what the frozen form keeps; in the FFN, every "
        "form that trains its second Linear also keeps that Linear's input. Operators "
        "are those dispatched in forward and backward."
    )
    return [explanation, *blocks]
