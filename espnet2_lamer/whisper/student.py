"""The student's start: the experts' mean update, cut to its rank."""

import torch
from torch import Tensor, nn

from espnet2_lamer.whisper.config import STUDENT
from espnet2_lamer.whisper.lora import expert_linears


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
