"""Stages 10 to 12: train heads on frozen upstreams, decode, write RESULTS.md."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from espnet2_lamer.evaluation.benchmark_sets import SPEECH_MINUTES
from espnet2_lamer.evaluation.challenge import challenge_table
from espnet2_lamer.evaluation.downstream import HeadOptions, train_head
from espnet2_lamer.evaluation.head_decoding import decode_run
from espnet2_lamer.evaluation.language_model import LmOptions, add_language_models
from espnet2_lamer.evaluation.lm_decoding import decode_with_lm
from espnet2_lamer.evaluation.paper_tables import paper_tables
from espnet2_lamer.evaluation.plots import write_plots
from espnet2_lamer.evaluation.results import (
    MeasureTable,
    Results,
    TaskFigure,
    collect_figures,
    describe_environment,
    write_results,
)
from espnet2_lamer.evaluation.runs import TARGETS, Rate, Run, choose_rates
from espnet2_lamer.evaluation.scored_runs import (
    ScoredTest,
    fill_results,
    language_table,
    score_run,
    superb_table,
)
from espnet2_lamer.evaluation.set_table import set_table
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.gpus import run_on_gpus
from espnet2_lamer.metrics.measure import Measure
from espnet2_lamer.recipe.benchmark import (
    ASR_TRACKS,
    alone,
    describe_systems,
    planned_runs,
    without_text,
)
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.reporting import (
    CONTROL,
    caveats,
    conditions,
    names,
    pretraining_tables,
    question,
    read_json,
    sources,
    write_page,
)

DECODE_CONFIG = Path("conf/decode_asr_mlsuperb.yaml")


def train_heads(options: Options, tracks: Sequence[str]) -> None:
    """Train the heads of some tracks."""
    runs = planned_runs(options, tracks)
    _side_by_side(options, _train_one, [(options, run) for run in runs], runs, "heads")


def _side_by_side(
    options: Options,
    function: Callable[..., Any],
    calls: Sequence[tuple],
    runs: Sequence[Run],
    description: str,
) -> None:
    """Call for every run, in processes that share the cores or the GPUs."""
    names = [run.name for run in runs]
    run_on_gpus(function, calls, options.nj, options.ngpu, description, names)


def _train_one(options: Options, run: Run) -> None:
    logging.info("%s: %d sets", run.name, len(run.train_sets))
    head = HeadOptions(
        layer=run.layer,
        target=TARGETS[run.track],
        unit=run.unit,
        store_dtype=options.store_dtype,
        feature_store_gb=options.feature_store_gb,
        nbpe=options.nbpe,
        learning_rate=run.learning_rate,
        seed=run.seed,
        ngpu=min(options.ngpu, 1),
        tune=run.tune,
        upstream_mode=run.upstream_mode,
        alone=run.track == "asr",
    )
    train_head(
        run.upstream,
        [options.raw / name for name in run.train_sets],
        [options.raw / name for name in run.dev_sets],
        options.dumpdir / "feature_store",
        run.directory(options.expdir),
        run.config,
        head,
        record=run.as_dict(),
    )
    if run.track in ASR_TRACKS:
        add_language_models(run.directory(options.expdir), _lm_options(options, run))


def _lm_options(options: Options, run: Run) -> LmOptions:
    texts = options.lm_train_text
    return LmOptions(
        ngram_num=options.ngram_num if options.use_ngram else 0,
        lm_config=options.lm_config if options.use_lm else None,
        texts=[(lang, Path(texts[lang])) for lang in run.langs if lang in texts],
        unit=run.unit,
        decoding=read_yaml(options.inference_config),
        seed=run.seed,
        ngpu=min(options.ngpu, 1),
    )


def score(options: Options) -> None:
    """Decode, score and write ``RESULTS.md``, its data and its pictures."""
    runs, rates = choose_rates(planned_runs(options), options.expdir)
    where = (options.expdir, options.raw)
    decoding = (*where, DECODE_CONFIG, options.device)
    calls = [(run, *decoding) for run in runs]
    _side_by_side(options, decode_run, calls, runs, "decoding")
    with_lm = [r for r in runs if options.language_models and r.track in ASR_TRACKS]
    calls = [(run, options.expdir, options.device) for run in with_lm]
    _side_by_side(options, decode_with_lm, calls, with_lm, "decoding with LM")
    tests = [
        test
        for run in runs
        for test in score_run(run, *where, options.seed, run in with_lm)
    ]
    systems = {
        system: text
        for system, text in describe_systems(options).items()
        if system in {test.run.system for test in tests}
    }
    baselines = options.baselines or [n for n in ("random", "base") if n in systems]
    tables = paper_tables(tests)
    tables += [language_table(tests, baselines, options.seed), superb_table(tests)]
    tables.append(_set_table(options, tests))
    tables.append(challenge_table(tests, options.expdir, baselines, options.seed))
    tables = [table for table in tables if table is not None] + _rate_table(rates)
    parameters, asked = {}, None
    if "lamer" in options.upstreams:
        asked = question(options, {t.task: t.run for t in tests})
        tables += pretraining_tables(options)
        experiments = {options.ssl_tag: options.ssl_experiment}
        if options.control:
            experiments[CONTROL] = options.control_experiment
        parameters = {
            name: read_json(experiment / "parameters.json")
            for name, experiment in experiments.items()
        }
    results = Results(
        systems=systems,
        baselines=baselines,
        tables=tables,
        parameters=parameters,
        environment=describe_environment(device=options.device),
        question=asked,
        caveats=caveats(options),
        conditions=conditions(options),
        names=names(options),
        notes=_notes(options, runs),
        sources=sources(options, runs),
    )
    fill_results(results, tests)
    figures = collect_figures(results)
    _log(figures)
    pictures = write_plots(options.results / "plots", results, figures)
    write_results(options.results, results, figures)
    logging.info("results: %s, %d plots", options.results / "RESULTS.md", len(pictures))
    write_page(options, options.results / "results.json")


def _log(figures: Sequence[TaskFigure]) -> None:
    for f in figures:
        if not f.task.track or f.task.part or f.measure.interval is None:
            continue
        low, high = f.measure.interval
        what = f"{f.system}, {f.task.track}, {f.label}, {f.unit}: {f.kind}"
        found = f"{f.measure.value:.1f} % ({low:.1f}-{high:.1f})"
        logging.info("%s %s, %d utterances", what, found, f.measure.count)


def _set_table(options: Options, tests: Sequence[ScoredTest]) -> MeasureTable | None:
    sets = {}
    for test in tests:
        run, task = test.run, test.task
        names = run.train_sets, run.tests[task.test]
        train, tested = ([options.raw / name for name in of] for of in names)
        label = " ".join(filter(None, (run.track, task.test, task.train)))
        sets[label] = train, tested, run.unit
    return set_table(sets, [options.raw / "ssl_train"])


def _notes(options: Options, runs: Sequence[Run]) -> list[str]:
    notes = []
    with_text = " and ".join(track for track in options.tracks if track != "lid")
    for lang, split in without_text(options).items() if with_text else ():
        heard = f"up to {SPEECH_MINUTES['train']:g} minutes of its speech."
        lid = f" Identification (lid) takes {heard}" if "lid" in options.tracks else ""
        notes.append(
            f"{lang} is left out of {with_text}: no utterance of its {split} set has "
            f"text.{'' if alone(options) else lid}"
        )
    if only := alone(options):
        notes.append(f"{only} is the only language: nothing to identify it from (lid).")
    if any(run.track == "lid" for run in runs):
        notes.append(
            "LID is scored twice: by the language tag with the highest CTC "
            "probability, and as the official script does, by the first tag of a free "
            "hypothesis, in which a head trained for minutes seldom dares to emit one."
        )
    seeds = ", ".join(str(seed) for seed in sorted({run.seed for run in runs}))
    heads = f"Heads were trained with seed {seeds}" if runs else "There are no heads"
    notes.append(
        f"{heads}; the pretraining is one run, so its own run-to-run noise is in no "
        "interval."
    )
    return notes


def _rate_table(rates: Sequence[Rate]) -> list[MeasureTable]:
    if not rates:
        return []
    rows: dict[str, dict[str, Measure]] = {}
    for rate in rates:
        name = "config's" if rate.learning_rate is None else f"{rate.learning_rate:g}"
        note = "chosen" if rate.chosen else ""
        rows.setdefault(rate.head, {})[name] = Measure(rate.dev_loss, note=note)
    return [
        MeasureTable(
            "Learning rates",
            "dev loss",
            rows,
            [],
            "Each head at every rate; the lowest dev loss (mean over seeds) is decoded "
            "and scored. The column system holds the rate.",
        )
    ]
