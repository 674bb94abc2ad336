r"""Witten-Bell n-gram language models in numpy, written and read as ARPA files.

.. math::
    P(w \mid h) = \frac{c(h w) + T(h) P(w \mid h')}{c(h) + T(h)}

with counts c, the number T(h) of different tokens seen after the context h, and h' the
context without its first token; below the unigrams stands the uniform distribution.
Unlike Kneser-Ney's discounts these always exist, however small the text or the
vocabulary, e.g. of characters.
"""

import gzip
import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
#: ARPA's logarithm of 0.
_NEVER = -99.0
_LN10 = math.log(10.0)
# A file of another's may unpack without end: text is packed to a fifth or so.
_MOST_UNPACKED, _LONGEST_LINE = 100, 1 << 20


@dataclass
class Ngram:
    """Probabilities and back-off weights, natural logarithms.

    Attributes:
        order: Longest n.
        probs: ``log P(w | h)`` by the tokens of ``h w``.
        backoffs: Weight of the shorter context, by context.
    """

    order: int
    probs: dict[tuple[str, ...], float] = field(default_factory=dict)
    backoffs: dict[tuple[str, ...], float] = field(default_factory=dict)

    @property
    def vocabulary(self) -> list[str]:
        """Every token that has a probability, ``</s>`` and ``<unk>`` included."""
        return [key[0] for key in self.probs if len(key) == 1]

    def log_prob(self, token: str, context: Sequence[str]) -> float:
        """Return ``log P(token | context)``; what is not known is ``<unk>``."""
        known = (token,) if (token,) in self.probs else (UNKNOWN,)
        context = tuple(context)[max(0, len(context) - self.order + 1) :]
        weight = 0.0
        while (*context, *known) not in self.probs:
            if not context:
                return weight + _NEVER * _LN10
            weight += self.backoffs.get(context, 0.0)
            context = context[1:]
        return weight + self.probs[*context, *known]


def train_ngram(
    sentences: Iterable[Sequence[str]], order: int, vocabulary: Sequence[str]
) -> Ngram:
    """Count tokens of sentences and estimate a model of ``order`` n.

    ``vocabulary`` are the tokens that there may be; ``</s>`` and ``<unk>`` join them.

    Raises:
        RecipeError: There is no text, or n is not 1 or more.
    """
    if order < 1:
        raise RecipeError(f"ngram_num: found {order}, expected 1 or more")
    counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for sentence in sentences:
        tokens = [BEGIN, *sentence, END] if sentence else []
        for place in range(1, len(tokens)):
            for length in range(min(order, place + 1)):
                counts[tuple(tokens[place - length : place])][tokens[place]] += 1
    if not counts:
        raise RecipeError("n-gram: no text to count; give transcripts or more text")
    known = dict.fromkeys([*vocabulary, UNKNOWN, END])
    known.pop(BEGIN, None)
    model = Ngram(order)
    for context in sorted(counts, key=lambda c: (len(c), c)):
        seen = counts[context]
        kinds, total = len(seen), seen.total()
        tokens = known if not context else seen
        for token in tokens:
            if context:
                # Of a shorter context, which comes first.
                lower = math.exp(model.log_prob(token, context[1:]))
            else:
                lower = 1.0 / len(known)
            prob = (seen[token] + kinds * lower) / (total + kinds)
            model.probs[*context, token] = math.log(prob)
        if context:
            model.backoffs[context] = math.log(kinds / (total + kinds))
    return model


def perplexity(model: Ngram, sentences: Iterable[Sequence[str]]) -> float:
    """Return the perplexity per token, ends of sentences included."""
    total, count = 0.0, 0
    for sentence in sentences:
        tokens = [BEGIN, *sentence, END]
        for place in range(1, len(tokens)):
            total -= model.log_prob(tokens[place], tokens[:place])
            count += 1
    return math.exp(total / count) if count else math.nan


def write_arpa(model: Ngram, path: Path) -> None:
    """Write an ARPA file, of logarithms to base 10; compressed if it ends in .gz."""
    lines = _arpa_lines(model)
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as raw:
            if path.suffix == ".gz":
                # Neither name nor time: the same model is the same file.
                with gzip.GzipFile("", "wb", 9, raw, 0) as packed:
                    packed.writelines(lines)
            else:
                raw.writelines(lines)


def _arpa_lines(model: Ngram) -> Iterator[bytes]:
    by_order: dict[int, list[tuple[str, ...]]] = defaultdict(list)
    for key in model.probs:
        by_order[len(key)].append(key)
    if (BEGIN,) not in model.probs:
        by_order[1].append((BEGIN,))
    yield b"\\data\\\n"
    for order, keys in sorted(by_order.items()):
        yield f"ngram {order}={len(keys)}\n".encode()
    for order, keys in sorted(by_order.items()):
        yield f"\n\\{order}-grams:\n".encode()
        for key in sorted(keys):
            prob = model.probs.get(key, _NEVER * _LN10) / _LN10
            line = f"{prob:.7f}\t{' '.join(key)}"
            if key in model.backoffs:
                line += f"\t{model.backoffs[key] / _LN10:.7f}"
            yield f"{line}\n".encode()
    yield b"\n\\end\\\n"


def read_arpa(path: str | Path) -> Ngram:
    """Read an ARPA file of any program, compressed or not.

    Raises:
        RecipeError: It is missing, or a line of it is not ARPA's.
    """
    path = Path(path)
    opened = gzip.open if path.suffix == ".gz" else open
    model, order, line = Ngram(0), 0, ""
    try:
        with opened(path, "rt", encoding="utf-8") as stream:
            most = _MOST_UNPACKED * path.stat().st_size + _LONGEST_LINE
            while line := stream.readline(_LONGEST_LINE):
                most -= len(line)
                if most < 0:
                    raise ValueError("it unpacks to what no text needs")
                line = line.strip("\n\r ")
                if line.endswith("-grams:") and line.startswith("\\"):
                    order = int(line[1 : -len("-grams:")])
                    model.order = max(model.order, order)
                elif line == "\\end\\":
                    break
                elif order and line:
                    prob, *rest = line.replace("\t", " ").split(" ")
                    key = tuple(rest[:order])
                    if len(key) < order or len(rest) > order + 1:
                        raise ValueError(f"{len(rest)} fields in a {order}-gram")
                    model.probs[key] = float(prob) * _LN10
                    if len(rest) > order:
                        model.backoffs[key] = float(rest[order]) * _LN10
            else:
                raise ValueError("no \\end\\: it was cut off")
    except FileNotFoundError:
        raise RecipeError(f"{path}: file not found; expected an ARPA file") from None
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise RecipeError(
            f"{path}: not an ARPA file ({error}, near {line[:60]!r}); write it anew"
        ) from error
    if not model.order:
        raise RecipeError(f"{path}: found no n-grams, expected an ARPA file")
    # Nothing follows from it, and it is never predicted.
    model.probs.pop((BEGIN,), None)
    return model


class TokenScores:
    """``log P(. | context)`` of all tokens of a list at once.

    Tokens of the list that the model does not know share the probability of ``<unk>``.
    """

    def __init__(self, model: Ngram, tokens: Sequence[str]) -> None:
        self.model = model
        self.tokens = tokens
        index = {token: number for number, token in enumerate(tokens)}
        found: dict[tuple[str, ...], tuple[list[int], list[float]]] = defaultdict(
            lambda: ([], [])
        )
        for (*context, token), prob in model.probs.items():
            if token in index:
                numbers, values = found[tuple(context)]
                numbers.append(index[token])
                values.append(prob)
        self._found: Mapping[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {
            context: (np.array(numbers), np.array(values))
            for context, (numbers, values) in found.items()
        }
        unknown = model.probs.get((UNKNOWN,), _NEVER * _LN10)
        self._start = np.full(len(tokens), unknown)

    def context(self, tokens: Sequence[str]) -> tuple[str, ...]:
        """Return what counts of the tokens so far."""
        return tuple(tokens)[max(0, len(tokens) - self.model.order + 1) :]

    def __call__(self, context: tuple[str, ...]) -> np.ndarray:
        """Return ``[V]`` natural logarithms after a context."""
        scores = self._start.copy()
        for start in range(len(context), -1, -1):
            shorter = context[start:]
            if shorter:
                scores += self.model.backoffs.get(shorter, 0.0)
            if shorter in self._found:
                numbers, values = self._found[shorter]
                scores[numbers] = values
        return scores
