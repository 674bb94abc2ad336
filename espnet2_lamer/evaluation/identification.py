"""Identify the language as the most probable tag under CTC, over a closed set."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

TAG = re.compile(r"\[[a-z_]+\]")


def language_tags(tokens: Sequence[str]) -> list[int]:
    """Return the ids of the language tags (``[eng]``) in a token list."""
    return [index for index, token in enumerate(tokens) if TAG.fullmatch(token)]


def most_probable_tag(log_probs: Tensor, tags: Sequence[int], blank: int = 0) -> int:
    r"""Choose :math:`\arg\max_l P_{CTC}([l] \mid x)`.

    The official script takes the first tag of a free hypothesis, and a hypothesis
    without one is wrong. A head with little training knows the language long before
    its tag wins against blank; this decision shows what it knows.

    Args:
        log_probs: ``[T, V]`` log posteriors of one utterance.
        tags: Token ids to choose from.
        blank: Id of CTC's blank.

    Returns:
        The id of the tag whose one-token sequence has the largest total probability.
    """
    count = len(tags)
    losses = torch.nn.functional.ctc_loss(
        log_probs.float()[:, None].expand(-1, count, -1),
        torch.tensor(tags)[:, None],
        torch.full((count,), len(log_probs)),
        torch.ones(count, dtype=torch.long),
        blank=blank,
        reduction="none",
    )
    return tags[int(losses.argmin())]
