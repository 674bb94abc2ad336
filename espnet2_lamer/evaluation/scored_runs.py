"""From decoded runs to the tables: score every test of every run and group them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from espnet2_lamer.evaluation.languages import (
    Groups,
    few_shot_group,
    identification_rates,
    language_figures,
    mean_of_groups,
    utterance_rates,
)
from espnet2_lamer.evaluation.mlsuperb_protocol import MONOLINGUAL
from espnet2_lamer.evaluation.results import MeasureTable, Results, Task
from espnet2_lamer.evaluation.runs import Run
from espnet2_lamer.evaluation.scoring import (
    LidScore,
    Score,
    by_language,
    lid_accuracy,
    score_files,
)
from espnet2_lamer.evaluation.superb_score import METRICS, PUBLISHED, superb_score
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.metrics.measure import Measure

#: How a language is chosen in track ``lid``, by the folder of its hypotheses.
DECISIONS = {"most_probable_tag": "most probable tag", "first_tag": "first tag"}
#: The decision of the official script.
OFFICIAL_DECISION = "first tag"
BPE = "bpe (scored in characters)"


@dataclass(frozen=True)
class ScoredTest:
    """One test of one run.

    Attributes:
        run: The head.
        task: What it was tested on.
        corpus: Corpora of the test set, for the figures over languages.
        utt2lang: True language per utterance.
        score: Error rate, None for track ``lid``.
        found: Languages found, for the tracks that identify.
        rates: Per language and utterance, by "error rate" and "accuracy".
    """

    run: Run
    task: Task
    corpus: str
    utt2lang: Mapping[str, str]
    score: Score | None
    found: LidScore | None
    rates: Mapping[str, Groups]


def score_run(
    run: Run, expdir: str | Path, raw: str | Path, seed: int = 0
) -> list[ScoredTest]:
    """Score all tests of a decoded run.

    Args:
        run: Decoded into ``decode_<test>`` below its directory.
        expdir: Parent of the run's directory.
        raw: Where the formatted sets are, with ``set.json``.
        seed: Seed of the bootstrap.

    Returns:
        A :class:`ScoredTest` per test set; for track ``lid`` one per decision.

    Raises:
        RecipeError: Hypotheses are missing, or differ from the reference in their
            utterances; a reference is empty or has not one language tag.
    """
    tests = []
    for label, sets in run.tests.items():
        here = run.directory(expdir) / f"decode_{label}"
        ref = here / "ref" / "text"
        utt2lang = read_table(here / "ref" / "utt2lang", "stage 12")
        corpora = sorted({_corpus(Path(raw) / name) for name in sets})
        for folder in DECISIONS if run.track == "lid" else ("free",):
            hyp = here / folder / "1best_recog" / "text"
            score = found = None
            rates = {}
            if run.track != "lid":
                tagged = run.track == "asr_lid"
                score = score_files(ref, hyp, run.unit, seed, remove_tags=tagged)
                rates["error rate"] = utterance_rates(ref, hyp, run.unit, utt2lang)
            if run.track in ("lid", "asr_lid"):
                found = lid_accuracy(ref, hyp)
                rates["accuracy"] = identification_rates(found)
            unit = DECISIONS.get(folder) or (BPE if run.unit == "bpe" else run.unit)
            task = Task(run.track, label, unit, training_speech(run))
            corpus = corpora[0] if len(corpora) == 1 else "all corpora"
            tests.append(ScoredTest(run, task, corpus, utt2lang, score, found, rates))
    return tests


def training_speech(run: Run) -> str:
    """Say in a few words what a head was trained on: corpus, amount, mixture."""
    amount = "all speech" if run.budget == "all" else run.budget
    return " ".join(filter(None, (run.corpus, amount, run.lid_reading)))


def fill_results(results: Results, tests: Sequence[ScoredTest]) -> None:
    """Put scored tests into ``recognition``, ``identification`` and ``heads``.

    A test set with several languages also gives its languages and, in the official
    benchmark, its trained and its few-shot languages as tasks of their own.
    """
    recognition: dict[Task, dict[str, dict[int, Score]]] = {}
    identification: dict[Task, dict[str, dict[int, LidScore]]] = {}
    heads: dict[tuple[Task, str], str] = {}
    for test in tests:
        parts: dict[str, tuple[Any, Any]] = {"": (test.score, test.found)}
        if len(set(test.utt2lang.values())) > 1:
            groupings = [str]
            if test.run.benchmark == "mlsuperb":
                groupings.insert(0, few_shot_group)
            for group in groupings:
                split = [
                    by_language(s, test.utt2lang, group) if s is not None else {}
                    for s in (test.score, test.found)
                ]
                for name in split[0] or split[1]:
                    parts[name] = (split[0].get(name), split[1].get(name))
        for part, (score, found) in parts.items():
            task = replace(test.task, part=part)
            system, seed = test.run.system, test.run.seed
            if score is not None:
                recognition.setdefault(task, {}).setdefault(system, {})[seed] = score
            if found is not None:
                decided = task if score is None else replace(task, unit="first tag")
                row = identification.setdefault(decided, {})
                row.setdefault(system, {})[seed] = found
                heads[decided, system] = describe_head(test.run)
            heads[task, system] = describe_head(test.run)
    results.recognition = recognition
    results.identification = identification
    results.heads = heads


def describe_head(run: Run) -> str:
    """Say what a head reads, and its learning rate where that is not the config's."""
    layer = "weighted sum" if run.layer == "all" else f"layer {run.layer}"
    rate = "" if run.learning_rate is None else f", lr {run.learning_rate:g}"
    return layer + rate


def language_table(
    tests: Sequence[ScoredTest], baselines: Sequence[str], seed: int = 0
) -> MeasureTable | None:
    """Summarise each track over its languages, as ML-SUPERB 2.0 does.

    Monolingual heads are taken together across languages, one figure per training
    and test corpus.

    Returns:
        The table, or None when no track has more than one language.
    """
    collected: dict[tuple[str, str], dict[str, dict[int, dict[str, Any]]]] = {}
    units: dict[tuple[str, str], dict[str, str]] = {}
    for test in tests:
        for kind, groups in test.rates.items():
            row = (_language_row(test), kind)
            by_seed = collected.setdefault(row, {}).setdefault(test.run.system, {})
            by_lang = by_seed.setdefault(test.run.seed, {})
            # One utterance may be in the test set of several monolingual heads.
            where = f"{test.run.corpus}/{test.task.test}/"
            for lang, values in groups.items():
                renamed = {where + utt: value for utt, value in values.items()}
                by_lang.setdefault(lang, {}).update(renamed)
                units.setdefault(row, {})[lang] = _language_unit(test, kind)
    rows: dict[str, dict[str, Measure]] = {}
    row_units: dict[str, str] = {}
    for (name, kind), systems in collected.items():
        if len(units[name, kind]) < 2:
            continue
        for system, trainings in systems.items():
            groups = mean_of_groups(list(trainings.values()))
            figures = language_figures(groups, seed, kind == "accuracy")
            for what, measure in figures.items():
                label = f"{name}: {kind}, {what}"
                rows.setdefault(label, {})[system] = measure
                row_units[label] = _units(units[name, kind])
    if not rows:
        return None
    return MeasureTable(
        "Over languages",
        "error rate or LID accuracy (%)",
        rows,
        list(baselines),
        "As ML-SUPERB 2.0: the mean over a language's utterances, then over languages; "
        "in characters without punctuation, and without spaces in cmn, jpn, tha, yue. "
        "The deviation is the sample standard deviation over languages. Different "
        "units of one row do not measure the same thing: compare systems, not rows.",
        row_units,
    )


def _language_row(test: ScoredTest) -> str:
    """Name what is averaged over languages: heads of one kind on sets of one kind."""
    words = [test.run.track, test.task.train, f"on {test.task.test}"]
    if test.run.track == "asr":
        # In the official benchmark a language has its own training corpus.
        official = test.run.benchmark == "mlsuperb"
        words[1] = test.run.budget if official else test.task.train
        words[2] = f"on {test.corpus}" if test.corpus and not official else ""
    if test.run.track == "lid":
        words.append(f"({test.task.unit})")
    return " ".join(filter(None, words))


def _language_unit(test: ScoredTest, kind: str) -> str:
    return test.task.unit if kind == "error rate" else "language"


def superb_table(tests: Sequence[ScoredTest]) -> MeasureTable | None:
    """Give the official benchmark's figures and overall score per system.

    The scale runs from the published FBANK to the best of the published systems and
    those scored here.

    Returns:
        The table; None when no system has all four tracks of one budget.
    """
    rows: dict[str, dict[str, Measure]] = {}
    for budget in PUBLISHED:
        metrics = _metrics([t for t in tests if t.run.budget == budget])
        complete = {s: m for s, m in metrics.items() if set(METRICS) <= set(m)}
        pool = {**PUBLISHED[budget], **{f"{s} (here)": m for s, m in complete.items()}}
        for system, values in complete.items():
            for name in METRICS:
                rows.setdefault(f"{budget}: {name}", {})[system] = Measure(values[name])
            score = Measure(superb_score(values, pool))
            rows.setdefault(f"{budget}: SUPERB score", {})[system] = score
    if not rows:
        return None
    langs = {
        lang
        for test in tests
        if test.run.track != "asr"
        for lang in test.utt2lang.values()
    }
    return MeasureTable(
        "ML-SUPERB",
        "figure (%; the score: 0 to 1000)",
        rows,
        [],
        "The official averages: monolingual error rates within a language, then over "
        "languages; the multilingual tracks corpus-level over trained and over "
        f"few-shot languages ({len(langs)} here, 143 in the benchmark). The SUPERB "
        "score is 0 for FBANK and 1000 for the best "
        f"of {', '.join(sorted(PUBLISHED['1h']))} and the systems here.",
    )


def _metrics(tests: Sequence[ScoredTest]) -> dict[str, dict[str, float]]:
    """``metrics[system][name]`` of the official benchmark, means over seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    mono: dict[str, dict[str, list[float]]] = {}
    for test in tests:
        run = test.run
        if run.benchmark != "mlsuperb":
            continue
        if run.track == "asr" and test.score is not None:
            rates = mono.setdefault(run.system, {}).setdefault(test.task.test, [])
            rates.append(test.score.error_rate)
            continue
        if run.track == "lid" and test.task.unit != OFFICIAL_DECISION:
            continue
        values = found.setdefault(run.system, {})
        prefix = "joint" if run.track == "asr_lid" else "multi"
        if test.score is not None:
            groups = by_language(test.score, test.utt2lang, few_shot_group)
            for group, kind in (("trained", "CER"), ("few-shot", "few-shot CER")):
                if score := groups.get(f"{group} languages"):
                    values.setdefault(f"{prefix} {kind}", []).append(score.error_rate)
        if test.found is not None:
            groups = by_language(test.found, test.utt2lang, few_shot_group)
            name = "LID accuracy" if run.track == "lid" else "joint accuracy"
            if score := groups.get("trained languages"):
                values.setdefault(name, []).append(score.accuracy)
    for system, rates_of in mono.items():
        # As mono_superb_score.py, which refuses to average when one is missing.
        if set(MONOLINGUAL) <= set(rates_of):
            by_lang: dict[str, list[float]] = {}
            for name, (lang, _) in MONOLINGUAL.items():
                by_lang.setdefault(lang, []).append(fmean(rates_of[name]))
            average = fmean(map(fmean, by_lang.values()))
            found.setdefault(system, {})["mono CER"] = [average]
    return {s: {n: fmean(v) for n, v in row.items()} for s, row in found.items()}


def _corpus(directory: Path) -> str:
    path = directory / "set.json"
    if not path.is_file():
        return ""
    return json.loads(path.read_text(encoding="utf-8")).get("corpus", "")


def _units(by_lang: Mapping[str, str]) -> str:
    units = sorted(set(by_lang.values()))
    if len(units) == 1:
        return units[0]
    return ", ".join(f"{lang} {unit}" for lang, unit in sorted(by_lang.items()))
