"""Error rates and language-identification accuracy of hypothesis files."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.bootstrap import rate_interval, wilson_interval
from espnet2_lamer.evaluation.units import UNITS
from espnet2_lamer.fileio.datadir import read_table

SPACE = "<space>"
UNKNOWN_LANGUAGE = "[UNK]"


class Counts(NamedTuple):
    """Substitutions, deletions, insertions and correct tokens of an alignment."""

    sub: int
    dele: int
    ins: int
    cor: int

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.sub + self.dele + self.ins

    @property
    def ref_length(self) -> int:
        """Number of reference tokens."""
        return self.sub + self.dele + self.cor


@dataclass(frozen=True)
class Score:
    """Corpus-level error rate of one hypothesis file.

    Attributes:
        unit: What was counted, one of :data:`espnet2_lamer.evaluation.units.UNITS`.
        counts: Alignment counts per utterance id, in byte order of the ids.
        interval: Bootstrap 95 % interval of the error rate, per cent.
    """

    unit: str
    counts: Mapping[str, Counts]
    interval: tuple[float, float]

    @property
    def total(self) -> Counts:
        """Counts summed over utterances."""
        return Counts(*map(sum, zip(*self.counts.values(), strict=True)))

    @property
    def errors(self) -> int:
        """Errors over all utterances."""
        return self.total.errors

    @property
    def ref_length(self) -> int:
        """Reference tokens over all utterances."""
        return self.total.ref_length

    @property
    def error_rate(self) -> float:
        """100 * errors / ref_length."""
        return 100 * self.errors / self.ref_length

    @property
    def utterances(self) -> int:
        """Number of utterances."""
        return len(self.counts)

    @property
    def sentence_error_rate(self) -> float:
        """Per cent of utterances with at least one error."""
        wrong = sum(c.errors > 0 for c in self.counts.values())
        return 100 * wrong / self.utterances

    def summary(self) -> dict[str, Any]:
        """The figures that ``bin.score`` writes."""
        return {
            "errors": self.errors,
            "ref_length": self.ref_length,
            "error_rate": self.error_rate,
            "interval": list(self.interval),
            "utterances": self.utterances,
        }


@dataclass(frozen=True)
class LidScore:
    """Language-identification accuracy of one hypothesis file.

    Attributes:
        correct: Whether the language was found, per utterance id.
        confusion: ``confusion[true][found]`` utterance counts; tags without brackets.
        interval: Wilson 95 % interval of the accuracy, per cent.
    """

    correct: Mapping[str, bool]
    confusion: Mapping[str, Mapping[str, int]]
    interval: tuple[float, float]

    @property
    def utterances(self) -> int:
        """Number of utterances."""
        return len(self.correct)

    @property
    def accuracy(self) -> float:
        """Per cent of utterances whose language was found."""
        return 100 * sum(self.correct.values()) / self.utterances

    @property
    def majority(self) -> float:
        """Accuracy, per cent, of always answering the most frequent language."""
        classes = (sum(found.values()) for found in self.confusion.values())
        return 100 * max(classes) / self.utterances


def tokenize(line: str, unit: str) -> list[str]:
    """Split a line into the tokens that are counted.

    ``char`` gives every character and a ``<space>`` token for each space, runs of
    white space being one space, as ESPnet's scoring does (``tokenize_text -f 2-
    --token_type char``); the other units split on white space.
    """
    if unit == "char":
        return [SPACE if c == " " else c for c in " ".join(line.split())]
    return line.split()


def error_counts(ref_tokens: Sequence[str], hyp_tokens: Sequence[str]) -> Counts:
    """Count errors of a hypothesis against a reference.

    The number of errors is the edit distance with unit costs. Among the alignments
    that reach it the one with most correct tokens is counted, which makes all four
    counts unique. NIST's sclite aligns with costs 4 (substitution) and 3 (deletion,
    insertion) instead: it never finds fewer errors, and more only where errors are
    dense.
    """
    from rapidfuzz.distance import Levenshtein

    ref_length, hyp_length = len(ref_tokens), len(hyp_tokens)
    # A substitution costs a hair more than the other edits: `one` is larger than
    # any number of substitutions, so both figures can be read off the distance.
    one = min(ref_length, hyp_length) + 1
    distance = Levenshtein.distance(ref_tokens, hyp_tokens, weights=(one, one, one + 1))
    errors, sub = divmod(distance, one)
    ins = (errors - sub + hyp_length - ref_length) // 2
    dele = errors - sub - ins
    return Counts(sub, dele, ins, ref_length - sub - dele)


def score_files(ref: str | Path, hyp: str | Path, unit: str, seed: int = 0) -> Score:
    """Score a Kaldi-style hypothesis ``text`` against a reference ``text``.

    Args:
        ref: Reference, ``utt_id text`` lines already in units.
        hyp: Hypotheses for exactly the same utterances; they may be empty.
        unit: How lines are split, see :func:`tokenize`.
        seed: Seed of the bootstrap interval.

    Raises:
        RecipeError: Unknown unit, a missing or empty file, an utterance on one side
            only, or an empty reference.
    """
    if unit not in UNITS:
        raise RecipeError(f"unit {unit!r}: expected one of {', '.join(UNITS)}")
    references, hypotheses = _read_pair(ref, hyp)
    counts = {}
    for utt, reference in references.items():
        tokens = tokenize(reference, unit)
        if not tokens:
            raise RecipeError(
                f"{ref}: utterance {utt!r} has an empty reference, so its error rate "
                "is undefined; drop it from both files"
            )
        counts[utt] = error_counts(tokens, tokenize(hypotheses[utt], unit))
    low, high = rate_interval(
        [c.errors for c in counts.values()],
        [c.ref_length for c in counts.values()],
        seed=seed,
    )
    return Score(unit, counts, (100 * low, 100 * high))


def language_tag(text: str) -> str:
    """Return the language tag that counts in a text, with brackets.

    As ML-SUPERB's scoring script: the first ``[abc]``; if there is none, the first
    ``[abc_def]`` (such as ``[org_jpn]``); if there is none either, ``[UNK]``.
    """
    for pattern in (r"\[[a-z]{3}\]", r"\[[a-z]{3}_[a-z]{3}\]"):
        if match := re.search(pattern, text):
            return match[0]
    return UNKNOWN_LANGUAGE


def lid_accuracy(ref: str | Path, hyp: str | Path) -> LidScore:
    """Language-identification accuracy, as ML-SUPERB's scoring script counts it.

    Args:
        ref: Reference, ``utt_id [lang] ...`` lines with exactly one tag each.
        hyp: Hypotheses for the same utterances; see :func:`language_tag`.

    Raises:
        RecipeError: A missing or empty file, an utterance on one side only, or a
            reference without exactly one tag.
    """
    references, hypotheses = _read_pair(ref, hyp)
    correct: dict[str, bool] = {}
    confusion: dict[str, dict[str, int]] = {}
    for utt, text in references.items():
        tags = re.findall(r"\[[a-z]{3}(?:_[a-z]{3})?\]", text)
        if len(tags) != 1:
            raise RecipeError(
                f"{ref}: utterance {utt!r} has {len(tags)} language tags in {text!r}; "
                "expected exactly one, such as [eng]"
            )
        found = language_tag(hypotheses[utt])
        correct[utt] = found == tags[0]
        row = confusion.setdefault(tags[0].strip("[]"), {})
        row[found.strip("[]")] = row.get(found.strip("[]"), 0) + 1
    low, high = wilson_interval(sum(correct.values()), len(correct))
    ordered = {k: dict(sorted(confusion[k].items())) for k in sorted(confusion)}
    return LidScore(correct, ordered, (100 * low, 100 * high))


def _read_pair(
    ref: str | Path, hyp: str | Path
) -> tuple[dict[str, str], dict[str, str]]:
    references, hypotheses = read_table(ref), read_table(hyp, made_by="decoding")
    if not references:
        raise RecipeError(f"{ref}: no utterances to score")
    _require_all(references, hypotheses, hyp, ref)
    _require_all(hypotheses, references, ref, hyp)
    # Byte order, so that the bootstrap does not depend on the order of the lines.
    return {utt: references[utt] for utt in sorted(references, key=str.encode)}, (
        hypotheses
    )


def _require_all(
    needed: Iterable[str], present: Mapping[str, str], path: str | Path, other: Any
) -> None:
    missing = [utt for utt in needed if utt not in present]
    if missing:
        shown = ", ".join(map(repr, missing[:5])) + (", ..." if missing[5:] else "")
        raise RecipeError(
            f"{path}: {len(missing)} utterance(s) of {other} missing: {shown}; both "
            "files must hold the same utterances"
        )
