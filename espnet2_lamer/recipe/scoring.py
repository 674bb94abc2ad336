"""Decode the test sets, score, and write RESULTS.md."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from espnet2_lamer.evaluation.head_decoding import decode_run
from espnet2_lamer.evaluation.plots import write_plots
from espnet2_lamer.evaluation.results import (
    CONFOUNDED,
    SYNTHETIC,
    MeasureTable,
    Results,
    TaskFigure,
    collect_figures,
    describe_environment,
    write_results,
)
from espnet2_lamer.evaluation.runs import Rate, Run, choose_rates
from espnet2_lamer.evaluation.scored_runs import (
    fill_results,
    language_table,
    score_run,
    superb_table,
)
from espnet2_lamer.metrics.measure import Measure
from espnet2_lamer.parallel import run_each
from espnet2_lamer.recipe.analysis import read_measure
from espnet2_lamer.recipe.benchmark import planned_runs
from espnet2_lamer.recipe.downstream import head_jobs
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.upstreams import upstream_specs

DECODE_CONFIG = Path("conf/decode_asr_mlsuperb.yaml")


def score(options: Options) -> None:
    """Decode, score and write ``RESULTS.md``, its data and its pictures."""
    runs, rates = choose_rates(planned_runs(options), options.expdir)
    device = "cuda" if options.ngpu else "cpu"
    run_each(
        decode_run,
        [(r, options.expdir, options.raw, DECODE_CONFIG, device) for r in runs],
        head_jobs(options),
        "decoding",
    )
    tests = [
        test
        for run in runs
        for test in score_run(run, options.expdir, options.raw, options.seed)
    ]
    systems = {s.system: s.description for s in upstream_specs(options).values()}
    baselines = options.baselines or [n for n in ("random", "base") if n in systems]
    tables = [language_table(tests, baselines, options.seed), superb_table(tests)]
    results = Results(
        systems=systems,
        baselines=baselines,
        tables=[
            *(table for table in tables if table is not None),
            *_rate_table(rates),
            *_pretraining_tables(options),
        ],
        parameters=_parameters(options),
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


def _read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def _pretraining_tables(options: Options) -> list[MeasureTable]:
    """What analysis found, where the pretraining is among the upstreams."""
    if "lamer" not in options.upstreams:
        return []
    names = {
        options.ssl_experiment.name: options.ssl_tag,
        options.control_experiment.name: "head-only control",
    }
    masked: dict[str, dict[str, Measure]] = {}
    saved = _read(options.analysis / "masked_accuracy.json")
    for experiment, measures in saved.items():
        for lang, fields in measures.items():
            masked.setdefault(lang, {})[names[experiment]] = read_measure(fields)
    tables = [
        MeasureTable(
            "Masked prediction",
            "masked accuracy (%)",
            masked,
            ["head-only control"],
            "Same units, data, masks and number of updates; the control trains the "
            "head on the frozen base.",
        )
    ]
    forgetting = _read(options.analysis / "forgetting.json")
    where = f"Held-out speech, layer {forgetting['layer']}."
    if forgetting["phone_probe"]:
        probes = {
            lang: {
                options.system(name): read_measure(probe["accuracy"])
                for name, probe in found.items()
            }
            for lang, found in forgetting["phone_probe"].items()
        }
        tables.append(
            MeasureTable(
                "Forgetting: linear phone probe",
                "frame accuracy (%)",
                probes,
                ["base"],
                f"{where} Replayed languages ({', '.join(options.replay_langs)}) show "
                "what was kept, new ones what was gained.",
            )
        )
    similar = {
        lang: {options.system(name): Measure(value) for name, value in found.items()}
        for lang, found in forgetting["cka"].items()
    }
    note = f"{where} 1 means unchanged up to rotation and scale."
    title = "Similarity to the base: linear CKA"
    return [*tables, MeasureTable(title, "CKA", similar, ["base"], note)]


def _parameters(options: Options) -> dict[str, dict[str, float]]:
    if "lamer" not in options.upstreams:
        return {}
    reports = {options.ssl_tag: _read(options.ssl_experiment / "parameters.json")}
    if options.control:
        reports["head-only control"] = _read(
            options.control_experiment / "parameters.json"
        )
    return reports


def _notes(options: Options, runs: Sequence[Run]) -> list[str]:
    notes = []
    if options.corpus == "mini":
        notes.append(SYNTHETIC)
    statistics = options.datadir / "manifest.json"
    if options.corpus == "manifest" and statistics.is_file():
        if _read(statistics).get("channel_confounded"):
            notes.append(CONFOUNDED)
    if any(run.track == "lid" for run in runs):
        notes.append(
            "LID is scored twice: by the language tag with the highest CTC "
            "probability, and as the official script does, by the first tag of a free "
            "hypothesis, in which a head trained for minutes seldom dares to emit one."
        )
    seeds = ", ".join(str(seed) for seed in sorted({run.seed for run in runs}))
    notes.append(
        f"Heads were trained with seed {seeds}; the pretraining is one run, so its own "
        "run-to-run noise is in no interval."
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
