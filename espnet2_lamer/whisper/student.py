"""The student: its start, its losses, and the store of its teachers' outputs."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from espnet2_lamer.fileio.atomic import atomic_path
from espnet2_lamer.whisper.config import STUDENT
from espnet2_lamer.whisper.lora import expert_linears

DISTILLATIONS = ("layerwise", "output", "none")
# Outputs of blocks for a batch: ``[B, T, D]`` of every encoder block, none where they
# are not needed, and ``[B, U, D]`` of every decoder block, or of the last one alone.
States = tuple[list[Tensor], list[Tensor]]


def truncated_mean(
    pairs: list[tuple[Tensor, Tensor]], rank: int
) -> tuple[Tensor, Tensor]:
    """Return the best rank-R approximation of the mean of low-rank products.

    The mean of N products ``B [d_out, r]``, ``A [r, d_in]`` is P Q with inner size
    N * r. QR of both factors leaves an SVD of that size instead of the full matrix's;
    singular vectors are the same.

    Returns:
        ``B [d_out, k]`` and ``A [k, d_in]`` in float32, ``k = min(R, N * r, d_out,
        d_in)``, with the singular values' square roots in both.
    """
    p = torch.cat([b.double() for b, _ in pairs], 1) / len(pairs)
    q = torch.cat([a.double() for _, a in pairs], 0)
    left, upper = torch.linalg.qr(p)
    right, lower = torch.linalg.qr(q.T)
    u, s, vh = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    k = min(rank, *p.shape, q.shape[1])
    root = s[:k].sqrt()
    b = (left @ u[:, :k]) * root
    a = root[:, None] * (vh[:k] @ right.T)
    return b.float(), a.float()


@torch.no_grad()
def start_student(module: nn.Module, teachers: tuple[str, ...]) -> None:
    """Set the student's LoRAs in a half to the teachers' mean update, in place.

    Where the teachers together have less rank than the student, the rest starts as
    any LoRA: A random, B zero.
    """
    for linear in expert_linears(module).values():
        student = linear.experts[STUDENT]
        experts = [linear.experts[name] for name in teachers]
        pairs = [(e.scale * e.lora_B, e.lora_A[0]) for e in experts]
        b, a = truncated_mean(pairs, student.rank)
        k = a.shape[0]
        student.lora_B.zero_()
        student.lora_B[:, :k] = b / student.scale
        student.lora_A[0, :k] = a


def cosine_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], real: Tensor
) -> Tensor:
    """Return 1 - cosine similarity of states ``[B, T, D]``, one per layer.

    It is averaged over the frames that are ``real [B, T]``, then over layers.
    """
    losses = [
        1.0 - F.cosine_similarity(s[real].float(), t[real].float(), dim=-1).mean()
        for s, t in zip(student, teacher, strict=True)
    ]
    return torch.stack(losses).mean()


def jensen_shannon(
    student: Tensor, teacher: Tensor, real: Tensor, temperature: float = 1.0
) -> Tensor:
    r"""Return the Jensen-Shannon divergence of the tokens' distributions, in nats.

    .. math:: \frac{1}{2} KL(p_t \| m) + \frac{1}{2} KL(p_s \| m), m = (p_t + p_s) / 2

    The mean over the ``real [B, U]`` positions of logits ``[B, U, V]``, both divided by
    ``temperature``; between 0 and ln 2.
    """
    s = F.log_softmax(student[real].float() / temperature, -1)
    t = F.log_softmax(teacher[real].float() / temperature, -1)
    m = torch.logaddexp(s, t) - math.log(2.0)
    kl = F.kl_div(m, t, reduction="none", log_target=True)
    kl = kl + F.kl_div(m, s, reduction="none", log_target=True)
    return 0.5 * kl.sum(-1).mean()


class TeacherCache:
    """One safetensors file an utterance, in bfloat16.

    A second of speech takes 0.3 MB for Whisper-base and 2.5 MB for medium: meant for
    small sets. An entry answers for one teacher (experts and Whisper), one recording
    and one text; any other is made anew. Runs with the same experts may share a folder.
    """

    def __init__(self, folder: str | Path, teacher: str) -> None:
        self.folder = Path(folder)
        self.teacher = teacher

    def key(self, utterance: str, audio: tuple[int, int], tokens: list[int]) -> str:
        """Return what an entry answers for; audio by its length and sum."""
        what = (self.teacher, utterance, audio, tokens)
        return hashlib.sha256(repr(what).encode()).hexdigest()

    def read(
        self, keys: list[str], layerwise: bool, device: torch.device | str = "cpu"
    ) -> States | None:
        """Return a batch in float32, or ``None``; the last block alone for others."""
        sides = ("encoder", "decoder") if layerwise else ("decoder",)
        entries = []
        for key in keys:
            try:
                with safe_open(self._path(key), "pt") as file:
                    entries.append({side: file.get_tensor(side) for side in sides})
            except (OSError, SafetensorError):
                return None
        found = []
        for side in sides:
            # [layers, T, D] each; time first, to be padded.
            rows = [entry[side].transpose(0, 1) for entry in entries]
            padded = pad_sequence(rows, batch_first=True).to(device, torch.float32)
            found.append(list(padded.unbind(2)))
        return (found[0], found[1]) if layerwise else ([], found[0][-1:])

    def write(
        self, keys: list[str], states: States, frames: Tensor, tokens: Tensor
    ) -> None:
        """Store a batch with ``frames [B]`` and ``tokens [B]``, a file an utterance."""
        halves = zip(("encoder", "decoder"), states, (frames, tokens), strict=True)
        sides = [(side, layers, sizes.tolist()) for side, layers, sizes in halves]
        for row, key in enumerate(keys):
            entry = {"frames": torch.tensor(int(frames[row]))}
            for side, layers, sizes in sides:
                if layers:
                    stack = torch.stack([layer[row, : sizes[row]] for layer in layers])
                    entry[side] = stack.to("cpu", torch.bfloat16).contiguous()
            with atomic_path(self._path(key)) as temporary:
                save_file(entry, temporary)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"
