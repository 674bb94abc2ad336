"""The paper's Table 1: a row per system, languages and their mean side by side."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from espnet2_lamer.evaluation.results import MeasureTable
from espnet2_lamer.evaluation.scored_runs import ScoredTest
from espnet2_lamer.evaluation.scoring import LidScore, Score, by_language
from espnet2_lamer.metrics.measure import Measure

_ASR_NOTE = (
    "As the paper's Table 1: a head per language and corpus, tested on that corpus; "
    "avg is the mean of the languages. The figure is the edit distance over reference "
    "tokens, sclite's count stands in brackets, then the 95 % interval. Units: {}. "
    "Texts: {}."
)
_LID_NOTE = (
    "As the paper's Table 1: one head on the mixture, per language the share of its "
    "utterances whose first tag is right; avg is the mean of the languages. Mixture: "
    "{}. By the most probable tag: see the section on language identification."
)
#: The decision of the official script.
_DECISION = "first tag"


def paper_tables(tests: Sequence[ScoredTest]) -> list[MeasureTable]:
    """Lay out scores of chosen corpora as the paper does: ASR by corpus, then LID.

    Empty where no head is of one language and corpus, as in ML-SUPERB's own tasks. Each
    amount of training speech has tables of its own.
    """
    tests = [t for t in tests if t.run.benchmark == "paper" or t.run.corpora]
    tables = []
    for budget in dict.fromkeys(test.run.budget for test in tests):
        mine = [test for test in tests if test.run.budget == budget]
        asr = [t for t in mine if t.run.track == "asr" and t.corpus == t.run.corpus]
        for corpus in dict.fromkeys(test.corpus for test in asr):
            tables.append(_recognition([t for t in asr if t.corpus == corpus], budget))
        lid = [t for t in mine if t.run.track == "lid" and t.task.unit == _DECISION]
        tables += [_identification(lid, budget)] if lid else []
    return tables


def _recognition(tests: Sequence[ScoredTest], budget: str) -> MeasureTable:
    scores: dict[str, dict[str, list[Score]]] = {}
    units, texts = {}, set()
    for test in tests:
        (lang,) = test.run.langs
        scores.setdefault(lang, {}).setdefault(test.run.system, []).append(test.score)
        units[lang] = test.run.unit
        texts.add(test.normalisation)
    rows = {
        lang: {system: _rate(of) for system, of in by_system.items()}
        for lang, by_system in scores.items()
    }
    named = ", ".join(f"{lang} {unit}" for lang, unit in units.items())
    note = _ASR_NOTE.format(named, " and ".join(sorted(texts)) + " normalisation")
    title = f"Table 1: {tests[0].corpus}, {budget}"
    return _table(title, "error rate (%)", rows, note)


def _rate(scores: Sequence[Score]) -> Measure:
    mean = Measure.of_seeds([score.measure for score in scores])
    return replace(mean, note=f"sclite {fmean(s.sclite_rate for s in scores):.1f}")


def _identification(tests: Sequence[ScoredTest], budget: str) -> MeasureTable:
    scores: dict[str, dict[str, list[LidScore]]] = {}
    for test in tests:
        for lang, part in by_language(test.found, test.utt2lang).items():
            of = scores.setdefault(lang, {}).setdefault(test.run.system, [])
            of.append(part)
    # In the order of the heads, which is the user's.
    langs = [lang for lang in tests[0].run.langs if lang in scores]
    rows = {
        lang: {
            system: Measure.of_seeds([score.measure for score in found])
            for system, found in scores[lang].items()
        }
        for lang in langs
    }
    mixture = " and ".join(sorted({test.task.train for test in tests}))
    note = _LID_NOTE.format(mixture)
    return _table(f"Table 1: LID, {budget}", "accuracy (%)", rows, note)


def _table(
    title: str, measure: str, rows: dict[str, dict[str, Measure]], note: str
) -> MeasureTable:
    systems = dict.fromkeys(system for row in rows.values() for system in row)
    rows["avg"] = {
        system: Measure(fmean(row[system].value for row in rows.values()))
        for system in systems
        if all(system in row for row in rows.values())
    }
    return MeasureTable(title, measure, rows, note=note, systems_first=True)
