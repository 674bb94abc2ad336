"""From decoded runs to the tables: score every test of every run and group them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from espnet2_lamer.evaluation.mlsuperb import few_shot_group
from espnet2_lamer.evaluation.results import MeasureTable, Results, Task
from espnet2_lamer.evaluation.runs import Run
from espnet2_lamer.evaluation.scoring import (
    Groups,
    LidScore,
    Score,
    by_language,
    identification_rates,
    language_figures,
    lid_accuracy,
    mean_of_groups,
    score_files,
    utterance_rates,
)
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.metrics.measure import Measure

#: How a language is chosen in track ``lid``, by the folder of its hypotheses.
DECISIONS = {"most_probable_tag": "most probable tag", "first_tag": "first tag"}
BPE = "bpe (scored in characters)"


@dataclass(frozen=True)
class ScoredTest:
    """One test of one run, with what it was tested on.

    Attributes:
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
        utt2lang = read_table(here / "ref" / "utt2lang", "decoding")
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
            # What a head was trained on: corpus, amount, mixture.
            amount = "all speech" if run.budget == "all" else run.budget
            words = filter(None, (run.corpus, amount, run.lid_reading))
            task = Task(run.track, label, unit, " ".join(words))
            corpus = corpora[0] if len(corpora) == 1 else "all corpora"
            tests.append(ScoredTest(run, task, corpus, utt2lang, score, found, rates))
    return tests


def fill_results(results: Results, tests: Sequence[ScoredTest]) -> None:
    """Put scored tests into ``recognition``, ``identification`` and ``heads``.

    A test set with several languages also gives its languages and, in the official
    benchmark, its trained and its few-shot languages as tasks of their own.
    """
    recognition: dict[Task, dict[str, dict[int, Score]]] = {}
    identification: dict[Task, dict[str, dict[int, LidScore]]] = {}
    heads: dict[tuple[Task, str], str] = {}
    for test in tests:
        system, seed = test.run.system, test.run.seed
        for scored, score in ((recognition, test.score), (identification, test.found)):
            if score is None:
                continue
            whole = test.task
            if test.score is not None and score is test.found:
                whole = replace(whole, unit="first tag")
            for task, part in _parts(test, whole, score).items():
                scored.setdefault(task, {}).setdefault(system, {})[seed] = part
                heads[task, system] = describe_head(test.run)
    results.recognition = recognition
    results.identification = identification
    results.heads = heads


def _parts(test: ScoredTest, whole: Task, score: Score | LidScore) -> dict[Task, Any]:
    parts = {whole: score}
    if len(set(test.utt2lang.values())) > 1:
        if test.run.benchmark == "mlsuperb":
            for name, part in by_language(score, test.utt2lang, few_shot_group).items():
                parts[replace(whole, part=name, group=True)] = part
        for lang, part in by_language(score, test.utt2lang).items():
            parts[replace(whole, part=lang)] = part
    return parts


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
    # collected[row, kind][system][seed][lang][utt]
    collected: dict[tuple[str, str], dict[str, dict[int, dict[str, Any]]]] = {}
    units: dict[tuple[str, str], dict[str, str]] = {}
    for test in tests:
        for kind, groups in test.rates.items():
            row = (_language_row(test), kind)
            by_seed = collected.setdefault(row, {}).setdefault(test.run.system, {})
            by_lang = by_seed.setdefault(test.run.seed, {})
            # One utterance may be in the test set of several monolingual heads.
            where = f"{test.run.corpus}/{test.task.test}/"
            unit = test.task.unit if kind == "error rate" else "language"
            for lang, values in groups.items():
                renamed = {where + utt: value for utt, value in values.items()}
                by_lang.setdefault(lang, {}).update(renamed)
                units.setdefault(row, {})[lang] = unit
    rows: dict[str, dict[str, Measure]] = {}
    row_units: dict[str, str] = {}
    for (name, kind), systems in collected.items():
        by_lang = units[name, kind]
        if len(by_lang) < 2:
            continue
        named = ", ".join(f"{lang} {unit}" for lang, unit in sorted(by_lang.items()))
        if len(set(by_lang.values())) == 1:
            named = next(iter(by_lang.values()))
        for system, trainings in systems.items():
            groups = mean_of_groups(list(trainings.values()))
            figures = language_figures(groups, seed, kind == "accuracy")
            for what, measure in figures.items():
                label = f"{name}: {kind}, {what}"
                rows.setdefault(label, {})[system] = measure
                row_units[label] = named
    if not rows:
        return None
    return MeasureTable(
        "Over languages",
        "error rate or LID accuracy (%)",
        rows,
        baselines,
        "As ML-SUPERB 2.0: the mean over a language's utterances, then over languages; "
        "in characters without punctuation, and without spaces in cmn, jpn, tha, yue. "
        "The deviation is the sample standard deviation over languages. Different "
        "units of one row do not measure the same thing: compare systems, not rows.",
        row_units,
    )


def _language_row(test: ScoredTest) -> str:
    """Name what is averaged over languages: heads of one kind on sets of one kind."""
    run = test.run
    train, where = test.task.train, f"on {test.task.test}"
    if run.track == "asr":
        where = f"on {test.corpus}" if test.corpus else ""
        if run.benchmark == "mlsuperb":
            # A language has its own training corpus.
            train, where = run.budget, ""
    decision = f"({test.task.unit})" if run.track == "lid" else ""
    return " ".join(filter(None, (run.track, train, where, decision)))


def _corpus(directory: Path) -> str:
    path = directory / "set.json"
    if not path.is_file():
        return ""
    return json.loads(path.read_text(encoding="utf-8")).get("corpus", "")
