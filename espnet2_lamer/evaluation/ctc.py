"""Decisions from CTC posteriors: a prefix search, and the language of a closed set."""

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

TAG = re.compile(r"\[[a-z_]+\]")
_LOG_ZERO = -1e10


def greedy_prefix_search(
    log_probs: np.ndarray, blank: int = 0, eos: int = -1
) -> list[int]:
    """Grow the prefix of highest CTC prefix probability until ending is likelier.

    The same search as ``espnet2.bin.asr_inference`` with ``beam_size: 1`` and
    ``ctc_weight: 1.0`` (Watanabe et al., 2017, Algorithm 2), without its loop over
    frames for every token of the vocabulary: the score of a continuation needs only
    the forward variables of the prefix, so all continuations are one logsumexp, and
    the forward variables are updated for the chosen one alone. It is not arg-max
    decoding: it sums over alignments. One difference: ESPnet prints a stray
    ``<sos/eos>`` when a search ends at the very last frame; this one does not.

    Args:
        log_probs: ``[T, V]`` log posteriors of one utterance.
        blank: Its id.
        eos: Id of ``<sos/eos>``, whose score is that of ending here.

    Returns:
        Token ids without blank and eos.
    """
    log_probs = log_probs.astype(np.float64)
    frames, vocabulary = log_probs.shape
    eos %= vocabulary
    blanks = log_probs[:, blank]
    # Log probability of the prefix with the last frame being its last token / blank.
    ends_token = np.full(frames, _LOG_ZERO)
    ends_blank = np.cumsum(blanks)
    prefix: list[int] = []
    # ESPnet allows one step per frame and ends a hypothesis at the last one.
    for _ in range(frames):
        total = np.logaddexp(ends_token, ends_blank)
        start = max(len(prefix), 1)
        # phi[t - 1]: the prefix is complete before frame t, where a token starts. A
        # repeated token needs a blank in between.
        scores = _logsumexp(total[start - 1 : -1, None] + log_probs[start:])
        if prefix:
            last = prefix[-1]
            scores[last] = _logsumexp(
                ends_blank[start - 1 : -1] + log_probs[start:, last]
            )
        else:
            scores = np.logaddexp(scores, log_probs[0])
        scores[blank] = _LOG_ZERO
        scores[eos] = total[-1]
        best = int(scores.argmax())
        if best == eos:
            break
        phi = ends_blank if prefix and best == prefix[-1] else total
        ends_token, ends_blank = _extend(
            phi, log_probs[:, best], blanks, start, first=not prefix
        )
        prefix.append(best)
    return prefix


def _logsumexp(values: np.ndarray) -> np.ndarray:
    if len(values) == 0:
        return np.full(values.shape[1:], _LOG_ZERO)
    peak = values.max(axis=0)
    return peak + np.log(np.exp(values - peak).sum(axis=0))


def _extend(
    phi: np.ndarray, token: np.ndarray, blanks: np.ndarray, start: int, first: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Forward variables ``[T]`` of the prefix extended by one token."""
    from math import exp, log1p

    def log_add(a: float, b: float) -> float:
        low, high = (a, b) if a < b else (b, a)
        return high + log1p(exp(low - high))

    ends_token = [_LOG_ZERO] * len(phi)
    ends_blank = [_LOG_ZERO] * len(phi)
    if first:
        ends_token[0] = float(token[0])
    phi_list, token_list, blank_list = phi.tolist(), token.tolist(), blanks.tolist()
    for t in range(start, len(phi)):
        before_token, before_blank = ends_token[t - 1], ends_blank[t - 1]
        ends_token[t] = log_add(before_token, phi_list[t - 1]) + token_list[t]
        ends_blank[t] = log_add(before_token, before_blank) + blank_list[t]
    return np.array(ends_token), np.array(ends_blank)


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
