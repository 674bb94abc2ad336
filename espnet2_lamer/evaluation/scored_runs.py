"""From decoded runs to the tables: scores of every test, and ML-SUPERB's averages."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from espnet2_lamer.evaluation.mlsuperb import (
    FEW_SHOT,
    MONOLINGUAL,
    TABLES,
    few_shot_group,
    other_units,
)
from espnet2_lamer.evaluation.results import MeasureTable, Results
from espnet2_lamer.evaluation.runs import LM_SUFFIX, WITH_LM, Run, Task
from espnet2_lamer.evaluation.scoring import (
    BPE,
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
from espnet2_lamer.evaluation.text_units import OFFICIAL
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.metrics.measure import Measure

#: How a language is chosen in track ``lid``, by the folder of its hypotheses.
DECISIONS = {"most_probable_tag": "most probable tag", "first_tag": "first tag"}
#: A task's metrics; error rates and accuracies in per cent.
TASKS = {
    "monolingual ASR": ("mono CER",),
    "multilingual ASR": ("multi CER", "multi few-shot CER"),
    "LID": ("LID accuracy",),
    "multilingual ASR+LID": ("joint accuracy", "joint CER", "joint few-shot CER"),
}
METRICS = tuple(metric for metrics in TASKS.values() for metric in metrics)
HIGHER_IS_BETTER = ("LID accuracy", "joint accuracy")
FLOOR = "FBANK"

#: ``PUBLISHED[budget][system][metric]``.
PUBLISHED: dict[str, dict[str, dict[str, float]]] = {
    budget: {s: dict(zip(METRICS, row, strict=True)) for s, row in systems.items()}
    for budget, systems in TABLES["published"].items()
}


@dataclass(frozen=True)
class ScoredTest:
    """One test of one run, with what it was tested on.

    Attributes:
        corpus: Corpora of the test set, for the figures over languages.
        normalisation: Of its texts, see ``SetInfo``.
        utt2lang: True language per utterance.
        score: Error rate, None for track ``lid``.
        rates: Per language and utterance, by "error rate" and "accuracy".
    """

    run: Run
    task: Task
    corpus: str
    utt2lang: Mapping[str, str]
    score: Score | None
    found: LidScore | None
    rates: Mapping[str, Groups]
    normalisation: str = ""


def score_run(
    run: Run, expdir: str | Path, raw: str | Path, seed: int = 0, lm: bool = False
) -> list[ScoredTest]:
    """Score all tests of a decoded run; for track ``lid`` once per decision.

    With ``lm`` also what it decoded with language models, as a system of its own.

    It was decoded into ``decode_<test>`` below its directory; ``raw`` has the formatted
    sets with ``set.json``.

    Raises:
        RecipeError: Hypotheses are missing, or differ from the reference in their
            utterances; a reference is empty or has not one language tag.
    """
    tests = []
    for label, sets in run.tests.items():
        here = run.directory(expdir) / f"decode_{label}"
        ref = here / "ref" / "text"
        utt2lang = read_table(here / "ref" / "utt2lang", "decoding")
        about = [_about(Path(raw) / name) for name in sets]
        corpora = {record.get("corpus", "") for record in about}
        texts = sorted({record.get("normalisation", "") for record in about})
        folders = DECISIONS if run.track == "lid" else ("free",)
        for folder in (*folders, *([WITH_LM] if lm else [])):
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
            chosen = () if run.corpus else run.corpora
            trained = _words(run.corpus, *chosen, amount, run.lid_reading)
            task = Task(run.track, label, unit, trained)
            corpus = next(iter(corpora)) if len(corpora) == 1 else "all corpora"
            who = run
            if folder == WITH_LM:
                who = replace(run, system=run.system + LM_SUFFIX)
            what = who, task, corpus, utt2lang, score, found, rates
            tests.append(ScoredTest(*what, " and ".join(filter(None, texts))))
    return tests


def _words(*words: str | None) -> str:
    return " ".join(word for word in words if word)


def fill_results(results: Results, tests: Sequence[ScoredTest]) -> None:
    """Put scored tests into ``recognition``, ``identification`` and ``heads``.

    A test set with several languages also gives its languages and, in the official
    benchmark, its trained and its few-shot languages as tasks of their own.
    """
    results.recognition, results.identification, results.heads = {}, {}, {}
    for test in tests:
        system, seed = test.run.system, test.run.seed
        tag = test.task
        if test.score is not None:
            tag = replace(tag, unit="first tag")
        for scored, whole, score in (
            (results.recognition, test.task, test.score),
            (results.identification, tag, test.found),
        ):
            for task, part in _parts(test, whole, score).items():
                scored.setdefault(task, {}).setdefault(system, {})[seed] = part
                results.heads[task, system] = describe_head(test.run)


def _parts(
    test: ScoredTest, whole: Task, score: Score | LidScore | None
) -> dict[Task, Any]:
    if score is None:
        return {}
    parts = {whole: score}
    if len(set(test.utt2lang.values())) > 1:
        if test.run.benchmark == "mlsuperb" and not test.run.corpora:
            for name, part in by_language(score, test.utt2lang, few_shot_group).items():
                parts[replace(whole, part=name, group=True)] = part
        for lang, part in by_language(score, test.utt2lang).items():
            parts[replace(whole, part=lang)] = part
    return parts


def _tree() -> defaultdict:
    """A dict of such dicts, however deep."""
    return defaultdict(_tree)


def describe_head(run: Run) -> str:
    """Say what a head reads, and its learning rate where that is not the config's."""
    layer = "weighted sum" if run.layer == "all" else f"layer {run.layer}"
    layer += f", {run.head_kind}" if run.benchmark == "mlsuperb2" else ""
    return layer if run.learning_rate is None else f"{layer}, lr {run.learning_rate:g}"


def language_table(
    tests: Sequence[ScoredTest], baselines: Sequence[str], seed: int = 0
) -> MeasureTable | None:
    """Summarise each track over its languages, as ML-SUPERB 2.0 does.

    Monolingual heads are taken together across languages, one figure per training
    and test corpus. None when no track has more than one language.
    """
    collected = _tree()  # [row, kind][system][seed][lang][utt]
    units = _tree()  # [row, kind][lang]
    for test in tests:
        for kind, groups in test.rates.items():
            row = (_language_row(test), kind)
            # One utterance may be in the test set of several monolingual heads.
            where = f"{test.run.corpus}/{test.task.test}/"
            unit = test.task.unit if kind == "error rate" else "language"
            for lang, values in groups.items():
                by_utt = collected[row][test.run.system][test.run.seed][lang]
                by_utt |= {where + utt: value for utt, value in values.items()}
                units[row][lang] = unit
    rows, row_units = _tree(), {}
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
                rows[label][system] = measure
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
        if run.benchmark == "mlsuperb" and not run.corpora:
            # A language has its own training corpus.
            train, where = run.budget, ""
    decision = f"({test.task.unit})" if run.track == "lid" else ""
    return _words(run.track, train, where, decision)


def _about(directory: Path) -> dict[str, Any]:
    path = directory / "set.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def superb_score(
    metrics: Mapping[str, float], pool: Mapping[str, Mapping[str, float]]
) -> float:
    r"""Return a system's SUPERB score, 0 for FBANK and 1000 for the best of all.

    .. math::
        1000 \cdot \operatorname{mean}_{tasks} \operatorname{mean}_{metrics}
        \frac{x - x_{FBANK}}{x_{best} - x_{FBANK}}

    with the best value per metric over the pool (ML-SUPERB, arXiv 2305.10615); the
    score of every system moves when a better one joins the pool.

    ``metrics`` are all of the system's, by the names in :data:`METRICS`; the pool has
    FBANK, and normally the system itself.
    """
    floor = pool[FLOOR]
    tasks = []
    for names in TASKS.values():
        shares = []
        for name in names:
            choose = max if name in HIGHER_IS_BETTER else min
            best = choose(system[name] for system in pool.values())
            shares.append((metrics[name] - floor[name]) / (best - floor[name]))
        tasks.append(fmean(shares))
    return 1000 * fmean(tasks)


def superb_table(tests: Sequence[ScoredTest]) -> MeasureTable | None:
    """Give the official benchmark's figures and overall score per system.

    The scale runs from the published FBANK to the best of the published systems and
    those scored here. None when no system has all four tracks of one budget. Where the
    monolingual track counts other units than the benchmark's, or other texts, the score
    is withheld, and the note says why.
    """
    tests = [t for t in tests if t.run.benchmark == "mlsuperb" and not t.run.corpora]
    withheld = _withheld(tests)
    rows = _tree()
    for budget in PUBLISHED:
        metrics = _metrics([t for t in tests if t.run.budget == budget])
        complete = {s: m for s, m in metrics.items() if set(METRICS) <= set(m)}
        pool = {**PUBLISHED[budget], **{f"{s} (here)": m for s, m in complete.items()}}
        for system, values in complete.items():
            for name in METRICS:
                rows[f"{budget}: {name}"][system] = Measure(values[name])
            if not withheld:
                score = Measure(superb_score(values, pool))
                rows[f"{budget}: SUPERB score"][system] = score
    if not rows:
        return None
    langs = {
        lang
        for test in tests
        if test.run.track != "asr"
        for lang in test.utt2lang.values()
    }
    scale = (
        "The SUPERB score is 0 for FBANK and 1000 for the best of "
        f"{', '.join(sorted(PUBLISHED['1h']))} and the systems here."
    )
    if withheld:
        scale = f"The SUPERB score is withheld, and mono CER not comparable: {withheld}"
    return MeasureTable(
        "ML-SUPERB",
        "figure (%; the score: 0 to 1000)",
        rows,
        note="The official averages, of sclite's counts: monolingual error rates "
        "within a language, then over languages; the multilingual tracks corpus-level "
        f"over trained and over few-shot languages ({len(langs)} here, 143 in the "
        f"benchmark). {scale}",
    )


def _withheld(tests: Sequence[ScoredTest]) -> str:
    """Say why the monolingual track is not the benchmark's; empty: it is."""
    alone = [test.run for test in tests if test.run.track == "asr"]
    units = {run.langs[0]: run.unit for run in alone}
    reasons = [other_units(units)] if units else []
    texts = {test.normalisation for test in tests} - {"", OFFICIAL}
    reasons += [f"text normalisation {', '.join(sorted(texts))}"] if texts else []
    reason = "; ".join(filter(None, reasons))
    return f"{reason}." if reason else ""


def _metrics(tests: Sequence[ScoredTest]) -> dict[str, dict[str, float]]:
    """``metrics[system][name]`` of the official benchmark, means over seeds."""
    found = defaultdict(lambda: defaultdict(list))
    mono = defaultdict(lambda: defaultdict(list))
    for test in tests:
        run = test.run
        if run.track == "asr":
            mono[run.system][test.task.test].append(test.score.sclite_rate)
            continue
        # The official script decides by the first tag.
        if run.track == "lid" and test.task.unit != "first tag":
            continue
        values = found[run.system]
        few = {utt for utt, lang in test.utt2lang.items() if lang in FEW_SHOT}
        trained = test.utt2lang.keys() - few
        prefix = "joint" if run.track == "asr_lid" else "multi"
        if test.score is not None:
            for utts, kind in ((trained, "CER"), (few, "few-shot CER")):
                if utts:
                    rate = test.score.subset(utts).sclite_rate
                    values[f"{prefix} {kind}"].append(rate)
        if test.found is not None and trained:
            name = "LID accuracy" if run.track == "lid" else "joint accuracy"
            values[name].append(test.found.subset(trained).accuracy)
    for system, rates_of in mono.items():
        # As mono_superb_score.py, which refuses to average when one is missing.
        if set(MONOLINGUAL) <= set(rates_of):
            by_lang = defaultdict(list)
            for name, (lang, _) in MONOLINGUAL.items():
                by_lang[lang].append(fmean(rates_of[name]))
            found[system]["mono CER"] = [fmean(map(fmean, by_lang.values()))]
    return {s: {n: fmean(v) for n, v in row.items()} for s, row in found.items()}
