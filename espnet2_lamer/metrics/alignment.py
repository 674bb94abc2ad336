"""Errors between a reference and a hypothesis: edit distance, and as sclite counts."""

from collections.abc import Sequence
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein


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


def error_counts(ref_tokens: Sequence[str], hyp_tokens: Sequence[str]) -> Counts:
    """Count errors of a hypothesis against a reference.

    The number of errors is the edit distance with unit costs, as ``editdistance`` (in
    ESPnet) and ``jiwer`` (in ML-SUPERB 2.0) give it. Among the alignments that reach
    it the one with most correct tokens is counted, which makes all four counts unique.
    """
    # A substitution costs a hair more than the other edits: `one` is larger than
    # any number of substitutions, so both figures can be read off the distance.
    one = min(len(ref_tokens), len(hyp_tokens)) + 1
    weights = (one, one, one + 1)
    distance = Levenshtein.distance(ref_tokens, hyp_tokens, weights=weights)
    errors, sub = divmod(distance, one)
    return _counts(errors, sub, ref_tokens, hyp_tokens)


def sclite_counts(ref_tokens: Sequence[str], hyp_tokens: Sequence[str]) -> Counts:
    """Count errors along the alignment that NIST's sclite looks for.

    Its word-to-word distances are 0 (correct), 3 (insertion, deletion) and 4
    (substitution) (SCTK, ``sclite.htm``, "The Alignment Process"): it prefers three
    insertions and three deletions (18) to five substitutions (20). So it never finds
    fewer errors than :func:`error_counts`, and more only where errors are dense. The
    manual does not say which of two equally cheap alignments is taken; here it is the
    one with fewer errors. sclite folds the case of letters; transcripts here are in
    one case already.
    """
    # Each edit costs a hair more than in sclite: `one` is larger than any number of
    # edits, so sclite's cost and the number of errors can be read off the distance.
    one = len(ref_tokens) + len(hyp_tokens) + 1
    weights = (3 * one + 1, 3 * one + 1, 4 * one + 1)
    distance = Levenshtein.distance(ref_tokens, hyp_tokens, weights=weights)
    cost, errors = divmod(distance, one)
    return _counts(errors, cost - 3 * errors, ref_tokens, hyp_tokens)


def _counts(errors: int, sub: int, ref: Sequence[str], hyp: Sequence[str]) -> Counts:
    # Insertions less deletions is the difference of the lengths.
    ins = (errors - sub + len(hyp) - len(ref)) // 2
    dele = errors - sub - ins
    return Counts(sub, dele, ins, len(ref) - sub - dele)
