"""Stages 10 to 12: train heads on frozen upstreams, decode, write RESULTS.md."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from espnet2_lamer.evaluation.benchmark_sets import SPEECH_MINUTES
from espnet2_lamer.evaluation.downstream import HeadOptions, train_head
from espnet2_lamer.evaluation.head_decoding import decode_run
from espnet2_lamer.evaluation.language_model import LmOptions, add_language_models
from espnet2_lamer.evaluation.lm_decoding import decode_with_lm
from espnet2_lamer.evaluation.plots import write_plots
from espnet2_lamer.evaluation.results import (
    CONFOUNDED,
    PARTLY_SYNTHETIC,
    SYNTHETIC,
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
    describe_systems,
    planned_runs,
    without_text,
)
from espnet2_lamer.recipe.options import CommonOptions, Options

DECODE_CONFIG = Path("conf/decode_asr_mlsuperb.yaml")
_CONTROL = "head-only control"


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
    tables = [language_table(tests, baselines, options.seed), superb_table(tests)]
    tables.append(_set_table(options, tests))
    tables = [table for table in tables if table is not None] + _rate_table(rates)
    parameters = {}
    if "lamer" in options.upstreams:
        tables += _pretraining_tables(options)
        experiments = {options.ssl_tag: options.ssl_experiment}
        if options.control:
            experiments[_CONTROL] = options.control_experiment
        parameters = {
            name: read_json(experiment / "parameters.json")
            for name, experiment in experiments.items()
        }
    results = Results(
        systems=systems,
        baselines=baselines,
        tables=tables,
        parameters=parameters,
        environment=describe_environment(),
        notes=_notes(options, runs),
    )
    fill_results(results, tests)
    figures = collect_figures(results)
    _log(figures)
    pictures = write_plots(options.results / "plots", results, figures)
    write_results(options.results, results, figures)
    logging.info("results: %s, %d plots", options.results / "RESULTS.md", len(pictures))


def _log(figures: Sequence[TaskFigure]) -> None:
    for f in figures:
        if not f.task.track or f.task.part or f.measure.interval is None:
            continue
        low, high = f.measure.interval
        what = f"{f.system}, {f.task.track}, {f.label}, {f.unit}: {f.kind}"
        found = f"{f.measure.value:.1f} % ({low:.1f}-{high:.1f})"
        logging.info("%s %s, %d utterances", what, found, f.measure.count)


def read_json(path: Path) -> Any:
    """Read what another stage wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def _measure(fields: dict[str, Any]) -> Measure:
    interval = fields["interval"]
    return Measure(
        value=fields["value"],
        interval=None if interval is None else tuple(interval),
        count=fields["count"],
        parts={utt: tuple(part) for utt, part in fields["parts"].items()},
    )


def _pretraining_tables(options: Options) -> list[MeasureTable]:
    """What analysis found of the pretraining."""
    names = {
        options.ssl_experiment.name: options.ssl_tag,
        options.control_experiment.name: _CONTROL,
    }
    masked: dict[str, dict[str, Measure]] = {}
    saved = read_json(options.analysis / "masked_accuracy.json")
    for experiment, measures in saved.items():
        for lang, fields in measures.items():
            masked.setdefault(lang, {})[names[experiment]] = _measure(fields)
    forgetting = read_json(options.analysis / "forgetting.json")
    where = f"Held-out speech, layer {forgetting['layer']}."
    # Without phones.ctm there are none.
    probes = {
        lang: {
            options.system(name): _measure(probe["accuracy"])
            for name, probe in found.items()
        }
        for lang, found in forgetting["phone_probe"].items()
    }
    similar = {
        lang: {options.system(name): Measure(value) for name, value in found.items()}
        for lang, found in forgetting["cka"].items()
    }
    tables = [
        MeasureTable(
            "Masked prediction",
            "masked accuracy (%)",
            masked,
            [_CONTROL],
            "Same units, data, masks and number of updates; the control trains the "
            "head on the frozen base.",
        ),
        MeasureTable(
            "Forgetting: linear phone probe",
            "frame accuracy (%)",
            probes,
            ["base"],
            f"{where} Replayed languages ({', '.join(options.replay_langs)}) show "
            "what was kept, new ones what was gained.",
        ),
        MeasureTable(
            "Similarity to the base: linear CKA",
            "CKA",
            similar,
            ["base"],
            f"{where} 1 means unchanged up to rotation and scale.",
        ),
    ]
    return [table for table in tables if table.rows]


def _set_table(options: Options, tests: Sequence[ScoredTest]) -> MeasureTable | None:
    sets = {}
    for test in tests:
        run, task = test.run, test.task
        names = run.train_sets, run.tests[task.test]
        train, tested = ([options.raw / name for name in of] for of in names)
        label = " ".join(filter(None, (run.track, task.test, task.train)))
        sets[label] = train, tested, run.unit
    return set_table(sets, [options.raw / "ssl_train"])


def data_notes(options: CommonOptions) -> list[str]:
    """Return the caveats that follow from the corpus."""
    corpora, notes = options.corpus.split(), []
    if "mini" in corpora:
        # Joined, it may have given some languages only.
        notes.append(SYNTHETIC if corpora == ["mini"] else PARTLY_SYNTHETIC)
    statistics = options.datadir / "manifest.json"
    if corpora == ["manifest"] and statistics.is_file():
        if read_json(statistics).get("channel_confounded"):
            notes.append(CONFOUNDED)
    return notes


def _notes(options: Options, runs: Sequence[Run]) -> list[str]:
    notes = data_notes(options)
    with_text = " and ".join(track for track in options.tracks if track != "lid")
    for lang, split in without_text(options).items() if with_text else ():
        notes.append(
            f"{lang} is left out of {with_text}: no utterance of its {split} set has "
            f"text. Identification (lid) takes up to {SPEECH_MINUTES['train']:g} "
            "minutes of its speech."
        )
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
