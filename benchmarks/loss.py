"""Section ``loss``: the masked-prediction loss against torchaudio's logits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchaudio.models.wav2vec2.components import _compute_logits

from benchmarks import memory
from benchmarks.harness import Case, interleave
from benchmarks.machine import available_memory
from benchmarks.options import option
from benchmarks.report import Table, megabytes, verdict
from espnet2_lamer.asr.encoder.masked_prediction import MaskedPredictionHead

TITLE = "masked-prediction loss, forward and backward"
DEVICES = ("cpu",)
OURS, TORCHAUDIO = "ours", "torchaudio logits + cross-entropy"
# torchaudio's peak in units of its [K + 1, frames, D] float32 tensor, and the share of
# free memory that one measurement may use.
PEAK_TENSORS, SHARE = 7, 0.6


@dataclass(frozen=True)
class Options:
    """Sizes; the defaults are the paper preset's head."""

    frames: tuple[int, ...] = option((50, 200, 400, 800, 3200), "masked frames")
    units: int = option(1000, "classes K")
    hidden: int = option(1024, "width of the model")
    dim: int = option(768, "width D of the unit embeddings")
    rounds: int = option(5, "timed rounds")
    fresh: int = option(1, "1: peak memory in new processes; 0: in this one, no RSS")


QUICK = Options(frames=(20,), units=50, hidden=32, dim=16, rounds=2, fresh=0)


class Losses:
    """Both losses on the same tensors.

    Args:
        frames: Masked frames M.
        options: K, width and D.
    """

    def __init__(self, frames: int, options: Options) -> None:
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        self.head = MaskedPredictionHead(options.hidden, options.units, options.dim)
        self.x = torch.randn(frames, options.hidden, generator=generator)
        self.x.requires_grad_()
        self.labels = torch.randint(options.units, (frames,), generator=generator)

    def ours(self) -> Tensor:
        """Cosine logits by one matrix product, the unit as the target class."""
        return F.cross_entropy(self.head(self.x), self.labels, reduction="sum")

    def torchaudio(self) -> Tensor:
        """Logits as torchaudio's, the right class always first, summed as in ESPnet."""
        projected = self.head.final_proj(self.x)
        logits = _compute_logits(projected, self.labels, self.head.label_embeddings)
        return F.cross_entropy(logits, torch.zeros_like(self.labels), reduction="sum")

    def __getitem__(self, form: str) -> Callable[[], Tensor]:
        """The loss function of a form."""
        return {OURS: self.ours, TORCHAUDIO: self.torchaudio}[form]

    def clear(self) -> None:
        """Drop all gradients."""
        self.head.zero_grad()
        self.x.grad = None

    def outcome(self, form: str) -> list[Tensor]:
        """Loss and gradients of the input, the projection and the embeddings."""
        self.clear()
        loss = self[form]()
        loss.backward()
        gradients = [parameter.grad.clone() for parameter in self.head.parameters()]
        return [loss.detach(), self.x.grad.clone(), *gradients]


def disagreement(losses: Losses) -> float:
    """Largest difference of the two, relative to the largest value of that tensor."""
    pairs = zip(losses.outcome(OURS), losses.outcome(TORCHAUDIO), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def peaks(form: str, frames: int, options: Options, measure_resident: bool):
    """Peak extra memory of forward and backward, in this process.

    Returns:
        Bytes by torch's allocator, and by resident size (``None`` if not asked for).
    """
    # Loads libraries and kernels, which are no part of the loss.
    Losses(2, options)[form]().backward()
    losses = Losses(frames, options)
    grown = None
    if measure_resident:
        memory.reset_peak_resident()
        before = memory.resident()
        losses[form]().backward()
        grown = memory.peak_resident() - before
        losses.clear()
    return memory.peak_allocated(lambda: losses[form]().backward()), grown


def estimate(frames: int, options: Options) -> int:
    """Bytes that torchaudio's way needs at its peak, roughly."""
    return PEAK_TENSORS * (options.units + 1) * frames * options.dim * 4


def run(options: Options, device: str) -> list[str | Table]:
    """Measure every number of frames; returns text and a table."""
    table = Table(
        f"K = {options.units}, D = {options.dim}, fp32",
        [
            "masked frames",
            "form",
            "ms",
            "time / ours",
            "peak MB allocated",
            "peak MB resident",
            "target",
        ],
    )
    worst = 0.0
    for frames in options.frames:
        forms = [OURS]
        needed = estimate(frames, options)
        fits = needed < SHARE * available_memory()
        losses = Losses(frames, options)
        if fits:
            forms.append(TORCHAUDIO)
            worst = max(worst, disagreement(losses))
            losses.clear()
        timings = interleave(
            {form: _case(losses, form) for form in forms},
            options.rounds,
            description=f"loss, {frames} frames",
        )
        fresh = bool(options.fresh)
        found = {
            form: memory.call(peaks, form, frames, options, fresh, fresh=fresh)
            for form in forms
        }
        for form in forms:
            allocated, grown = found[form]
            is_peer = form == TORCHAUDIO
            ratios = [allocated / found[OURS][0]]
            if fresh:
                # A page is the least that can be seen.
                ratios.append(grown / max(found[OURS][1], 4096))
            table.rows.append(
                [
                    str(frames),
                    form,
                    f"{1e3 * timings.median(form):.1f}",
                    str(timings.ratio(form, OURS)),
                    megabytes(allocated),
                    megabytes(grown) if fresh else "-",
                    f"{min(ratios):.0f}x our memory, {verdict(min(ratios), '>=', 20)}"
                    if is_peer
                    else "",
                ]
            )
        if not fits:
            note = f"not run: needs about {needed / 1e9:.0f} GB"
            table.rows.append([str(frames), TORCHAUDIO, note, "-", "-", "-", ""])
    resident = (
        "growth of the process's peak resident size in a new process"
        if options.fresh
        else "not measured"
    )
    explanation = (
        f"Projection {options.hidden} -> {options.dim}, logits, cross-entropy and "
        f"backward on the same tensors, {options.rounds} rounds; masked frames only "
        "(torchaudio's module computes unmasked frames as well). Loss and gradients of "
        f"the two agree to {worst:.1e} (relative). Allocated: the most that torch's "
        f"allocator handed out at a time; resident: {resident}. The target is decided "
        "by the smaller of the two ratios."
    )
    return [explanation, table]


def _case(losses: Losses, form: str) -> Case:
    return Case(lambda: losses[form]().backward(), losses.clear)
