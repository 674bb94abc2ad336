"""When words were said: decoded tokens aligned with the posteriors they came from."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import exp

import numpy as np
import torch

from espnet2_lamer.metrics.ctc import Span, spans, viterbi

_SPACE, _PIECE_START = "<space>", "\u2581"
# Scripts that write words without spaces: every character is a word in a CTM file.
_WORDS_OF_ONE = ("CJK ", "HIRAGANA ", "KATAKANA ")


@dataclass(frozen=True)
class TimedWord:
    """A word, or a token, from ``start`` to ``end`` in seconds.

    ``confidence`` is the mean posterior of its frames, geometric, from 0 to 1.
    """

    text: str
    start: float
    end: float
    confidence: float

    def shifted(self, seconds: float) -> "TimedWord":
        """Return the same so much later."""
        start, end = self.start + seconds, self.end + seconds
        return TimedWord(self.text, start, end, self.confidence)


@cache
def _has_forced_align() -> bool:
    """Whether torchaudio's compiled alignment is there; it is not in all its builds."""
    try:
        from torchaudio.functional import forced_align

        posteriors = torch.zeros(1, 2, 2).log_softmax(-1)
        forced_align(posteriors, torch.tensor([[1]]))
    except (ImportError, AttributeError, RuntimeError, OSError, NotImplementedError):
        return False
    return True


def align(log_probs: np.ndarray, tokens: Sequence[int], blank: int = 0) -> list[Span]:
    """Return the frames of each token on the best CTC path through ``[T, V]``.

    By ``torchaudio.functional.forced_align`` where there is one, else by
    :func:`~espnet2_lamer.metrics.ctc.viterbi`; both give the same path.
    """
    if not tokens:
        return []
    if _has_forced_align():
        from torchaudio.functional import forced_align

        posteriors = torch.from_numpy(np.ascontiguousarray(log_probs, np.float32))
        path = forced_align(posteriors[None], torch.tensor([[*tokens]]), blank=blank)
        path = path[0][0].numpy()
    else:
        path = viterbi(log_probs, tokens, blank)
    return spans(path, log_probs, blank)


def timed_tokens(
    found: Sequence[Span], tokens: Sequence[str], edges: np.ndarray
) -> list[TimedWord]:
    """Give spans their tokens and seconds; frame t lies from ``edges[t]`` on."""
    return [
        TimedWord(
            token, float(edges[s.start]), float(edges[s.end]), min(1.0, exp(s.score))
        )
        for token, s in zip(tokens, found, strict=True)
    ]


def group_words(tokens: Sequence[TimedWord], token_type: str) -> list[TimedWord]:
    """Join tokens to words, from the first one's start to the last one's end.

    ``char``: what ``<space>`` separates, and each character of a script without
    spaces; ``bpe``: from a piece that begins a word to the next; else each token.
    """
    groups: list[list[TimedWord]] = []
    begins = True
    for token in tokens:
        text = token.text
        if token_type == "char":
            if text == _SPACE:
                begins = True
                continue
            alone = _is_word(text)
        else:
            alone = token_type != "bpe" or text.startswith(_PIECE_START)
        if begins or alone or (token_type == "char" and _is_word(groups[-1][0].text)):
            groups.append([])
        groups[-1].append(token)
        begins = False
    return [word for word in map(_join, groups) if word.text]


def _is_word(text: str) -> bool:
    return len(text) == 1 and unicodedata.name(text, "").startswith(_WORDS_OF_ONE)


def _join(group: Sequence[TimedWord]) -> TimedWord:
    text = "".join(token.text for token in group).replace(_PIECE_START, "")
    confidence = float(np.exp(np.mean([np.log(t.confidence + 1e-30) for t in group])))
    return TimedWord(text, group[0].start, group[-1].end, confidence)
