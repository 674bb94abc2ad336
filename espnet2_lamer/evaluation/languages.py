"""Figures over languages as ML-SUPERB 2.0 gives them: mean, worst, deviation."""

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from espnet2_lamer.evaluation.scoring import (
    LANGUAGE_TAG,
    LidScore,
    read_pair,
    tokenize,
)
from espnet2_lamer.metrics.alignment import error_counts
from espnet2_lamer.metrics.measure import MacroMeasure, Measure

#: Values per language and utterance id, as fractions.
Groups = Mapping[str, Mapping[str, float]]

#: Languages whose spaces ML-SUPERB 2.0 does not score.
UNSPACED = ("cmn", "jpn", "tha", "yue")
#: The challenge of ML-SUPERB 2.0 reports the mean of so many worst languages.
WORST = 15


def utterance_rates(
    ref: str | Path, hyp: str | Path, unit: str, utt2lang: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Return the error rate of every utterance, by language.

    In characters (``char``, ``bpe``) after ML-SUPERB 2.0's normalisation: no Unicode
    punctuation, upper case, no spaces in the languages of :data:`UNSPACED`; language
    tags are left out. As in its script, an utterance whose reference is then empty is
    skipped. Other units are compared token by token.

    Raises:
        RecipeError: A file is missing or empty, or an utterance is on one side only.
    """
    references, hypotheses = read_pair(ref, hyp)
    groups: dict[str, dict[str, float]] = {}
    for utt, reference in references.items():
        lang = utt2lang[utt]
        wanted, found = (
            _tokens(text, unit, lang) for text in (reference, hypotheses[utt])
        )
        if wanted:
            errors = error_counts(wanted, found).errors
            groups.setdefault(lang, {})[utt] = errors / len(wanted)
    return groups


def identification_rates(score: LidScore) -> dict[str, dict[str, float]]:
    """Return 1 or 0 for every utterance, by true language."""
    groups: dict[str, dict[str, float]] = {}
    for utt, (right, _) in score.measure.parts.items():
        groups.setdefault(score.languages[utt], {})[utt] = float(right)
    return groups


def mean_of_groups(trainings: Sequence[Groups]) -> Groups:
    """Average the utterances' values of several trainings on one test set."""
    first, *others = trainings
    if not others:
        return first
    return {
        lang: {utt: fmean(t[lang][utt] for t in trainings) for utt in utts}
        for lang, utts in first.items()
    }


def language_figures(
    groups: Groups, seed: int = 0, higher_is_better: bool = False
) -> dict[str, Measure]:
    """Summarise languages: their mean, the worst one, and how far they lie apart.

    As ``egs2/ml_superb2/asr1/local/score.py``: a language's rate is the mean over its
    utterances (not corpus-level as in ML-SUPERB 1.0), and the deviation is the sample
    standard deviation over languages.

    Returns:
        Figures in per cent by name: ``mean over languages`` with its interval,
        ``worst language`` (its note names it), ``mean of the 15 worst languages``
        where there are more, ``deviation over languages`` where there are several.
    """
    rates = {lang: 100 * fmean(values.values()) for lang, values in groups.items()}
    ordered = sorted(rates, key=lambda lang: (rates[lang], lang))
    if not higher_is_better:
        ordered.reverse()
    count = sum(map(len, groups.values()))
    worst = ordered[0]
    figures: dict[str, Measure] = {
        "mean over languages": MacroMeasure.of_groups(groups, seed),
        "worst language": Measure(rates[worst], count=len(groups[worst]), note=worst),
    }
    if len(ordered) > WORST:
        figures[f"mean of the {WORST} worst languages"] = Measure(
            fmean(rates[lang] for lang in ordered[:WORST]), count=count
        )
    if len(ordered) > 1:
        spread = stdev(rates.values())
        figures["deviation over languages"] = Measure(spread, count=count)
    return figures


def _tokens(text: str, unit: str, lang: str) -> list[str]:
    if unit not in ("char", "bpe"):
        return tokenize(text, unit, remove_tags=True)
    line = LANGUAGE_TAG.sub("", text)
    line = "".join(line.split()) if lang in UNSPACED else line
    kept = (c for c in line if not unicodedata.category(c).startswith("P"))
    return list("".join(kept).upper().strip())
