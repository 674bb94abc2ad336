"""The student: its start, its losses, and the store of its teachers' outputs."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path
from espnet2_lamer.whisper.config import STUDENT
from espnet2_lamer.whisper.lora import expert_linears

DISTILLATIONS = ("layerwise", "output", "none")


def truncated_mean(
    pairs: list[tuple[Tensor, Tensor]], rank: int
) -> tuple[Tensor, Tensor]:
    """Return the best rank-R approximation of the mean of low-rank products.

    The mean of N products of rank r is P Q with inner size N * r. QR of both factors
    leaves an SVD of that size instead of the full matrix's; singular vectors are the
    same.

    Args:
        pairs: N pairs ``B [d_out, r]``, ``A [r, d_in]``; ranks may differ.
        rank: R.

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
    """Set the student's LoRAs to the teachers' mean update, in place.

    Where the teachers together have less rank than the student, the rest starts as
    any LoRA: A random, B zero.

    Args:
        module: Encoder or decoder with LoRAs of the teachers and the student.
        teachers: Names of the experts.
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
    """Return 1 - cosine similarity, averaged over real frames, then over layers.

    Args:
        student: Hidden states ``[B, T, D]``, one per layer.
        teacher: The same of the teacher.
        real: Frames that count ``[B, T]``.
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

    Args:
        student: Logits ``[B, U, V]``.
        teacher: Logits ``[B, U, V]``.
        real: Positions that count ``[B, U]``.
        temperature: Divides both logits.

    Returns:
        The mean over real positions; between 0 and ln 2.
    """
    s = F.log_softmax(student[real].float() / temperature, -1)
    t = F.log_softmax(teacher[real].float() / temperature, -1)
    m = torch.logaddexp(s, t) - math.log(2.0)
    kl = F.kl_div(m, t, reduction="none", log_target=True)
    kl = kl + F.kl_div(m, s, reduction="none", log_target=True)
    return 0.5 * kl.sum(-1).mean()


@dataclass
class TeacherOutputs:
    """Outputs of blocks for a batch.

    Args:
        encoder: ``[B, T, D]`` of every encoder block; none when they are not needed.
        decoder: ``[B, U, D]`` of every decoder block, or of the last one alone. The
            logits follow from the last one.
    """

    encoder: list[Tensor]
    decoder: list[Tensor]


class TeacherCache:
    """One safetensors file an utterance, in bfloat16.

    A second of speech takes 0.3 MB for Whisper-base and 2.5 MB for medium: meant for
    small sets. An entry answers for one teacher, one audio length and one text; any
    other is made anew.

    Args:
        folder: Where to; it may be shared by runs with the same experts.
        teacher: Identity of the experts and of Whisper.
    """

    def __init__(self, folder: str | Path, teacher: str) -> None:
        self.folder = Path(folder)
        self.teacher = teacher

    def key(self, utterance: str, samples: int, tokens: list[int]) -> str:
        """Return what an entry answers for."""
        what = (self.teacher, utterance, samples, tokens)
        return hashlib.sha256(repr(what).encode()).hexdigest()

    def read(
        self, keys: list[str], layerwise: bool, device: torch.device | str = "cpu"
    ) -> TeacherOutputs | None:
        """Return the outputs of a batch in float32, or ``None`` when one is missing.

        Args:
            keys: Of the utterances.
            layerwise: Whether every block's outputs are needed.
            device: Where to.
        """
        sides = ("encoder", "decoder") if layerwise else ("decoder",)
        entries = []
        for key in keys:
            try:
                with safe_open(self._path(key), "pt") as file:
                    entries.append({side: file.get_tensor(side) for side in sides})
            except (OSError, SafetensorError):
                return None
        found: dict[str, list[Tensor]] = {"encoder": []}
        for side in sides:
            # [layers, T, D] each; time first, to be padded.
            rows = [entry[side].transpose(0, 1) for entry in entries]
            padded = pad_sequence(rows, batch_first=True).to(device, torch.float32)
            found[side] = list(padded.unbind(2))
        decoder = found["decoder"] if layerwise else found["decoder"][-1:]
        return TeacherOutputs(found["encoder"], decoder)

    def write(
        self, keys: list[str], outputs: TeacherOutputs, frames: Tensor, tokens: Tensor
    ) -> None:
        """Store the outputs of a batch, one file an utterance, each atomically.

        Args:
            keys: Of the utterances.
            outputs: Of the batch.
            frames: Real frames ``[B]``.
            tokens: Real positions ``[B]``.
        """
        sizes = zip(keys, frames.tolist(), tokens.tolist(), strict=True)
        for row, (key, length, count) in enumerate(sizes):
            entry = {"decoder": torch.stack([s[row, :count] for s in outputs.decoder])}
            if outputs.encoder:
                encoder = [s[row, :length] for s in outputs.encoder]
                entry["encoder"] = torch.stack(encoder)
            entry = {
                name: value.to("cpu", torch.bfloat16).contiguous()
                for name, value in entry.items()
            }
            entry["frames"] = torch.tensor(length)
            with atomic_path(self._path(key)) as temporary:
                save_file(entry, temporary)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


@dataclass
class StudentLoss:
    """ASR loss plus what pulls the student to its teacher.

    The paper gives no weights. The defaults: 1 for ASR and for the cosine, 2 for the
    Jensen-Shannon divergence, which is its weight beside cross-entropy in
    DistilWhisper (arXiv 2311.01070).

    Args:
        distillation: ``"layerwise"``, ``"output"`` or ``"none"``.
        asr_weight: Of the ASR loss.
        hidden_weight: Of the cosine loss on hidden states.
        logit_weight: Of the divergence.
        temperature: Of the divergence.

    Raises:
        RecipeError: An unknown kind of distillation.
    """

    distillation: str = "layerwise"
    asr_weight: float = 1.0
    hidden_weight: float = 1.0
    logit_weight: float = 2.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.distillation not in DISTILLATIONS:
            raise RecipeError(
                f"model_conf.distillation: found {self.distillation!r}, expected one "
                f"of {list(DISTILLATIONS)}"
            )

    @property
    def layerwise(self) -> bool:
        """Whether hidden states count."""
        return self.distillation == "layerwise"

    def __call__(
        self,
        asr: Tensor,
        states: tuple[Sequence[Tensor], Sequence[Tensor]],
        logits: Tensor,
        teacher: TeacherOutputs,
        teacher_logits: Tensor,
        real: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the losses up.

        Args:
            asr: The ASR loss.
            states: Of the student: the encoder's ``[B, T, D]`` a layer, and the
                decoder's ``[B, U, D]`` a layer.
            logits: The student's ``[B, U, V]``.
            teacher: The teacher's states.
            teacher_logits: ``[B, U, V]``.
            real: Frames ``[B, T]`` and positions ``[B, U]`` that are not padding.

        Returns:
            Loss and statistics. The cosine loss is the mean over all layers of
            encoder and decoder.
        """
        divergence = jensen_shannon(logits, teacher_logits, real[1], self.temperature)
        stats = {"loss_logit": divergence.detach()}
        loss = self.asr_weight * asr + self.logit_weight * divergence
        if self.layerwise:
            encoder = cosine_loss(states[0], teacher.encoder, real[0])
            decoder = cosine_loss(states[1], teacher.decoder, real[1])
            layers = len(states[0]), len(states[1])
            hidden = (layers[0] * encoder + layers[1] * decoder) / sum(layers)
            stats["loss_hidden"] = hidden.detach()
            loss = loss + self.hidden_weight * hidden
        return loss, stats
