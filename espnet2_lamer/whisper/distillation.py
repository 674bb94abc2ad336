"""Losses that pull a student to its teacher, on real frames and tokens only."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


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
