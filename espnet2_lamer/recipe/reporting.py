"""What stages 8 and 12 say of a run beside its figures, and the page they write."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet2_lamer.data.languages import named
from espnet2_lamer.evaluation.changes import Question
from espnet2_lamer.evaluation.results import (
    CONFOUNDED,
    PARTLY_SYNTHETIC,
    SYNTHETIC,
    MeasureTable,
    Results,
    collect_figures,
    describe_environment,
    results_data,
)
from espnet2_lamer.evaluation.runs import Run, Task
from espnet2_lamer.evaluation.spread import Spread, read_spreads
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.metrics.measure import Measure
from espnet2_lamer.recipe.common_options import CommonOptions
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.report.experiment import RESULTS, write_report

CONTROL = "head-only control"
# Options that a run may have beside its preset's without being another kind of run.
_OF_ANY_RUN = {
    *"preset python stage stop_stage skip_stages print_commands plan nj ngpu".split(),
    *"dask datadir dumpdir expdir seed eval_seeds control upstreams baselines".split(),
    *"feature_store_gb sanity hf_repo tracks max_bad_audio dry_run num_nodes".split(),
}


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


def pretraining_tables(options: Options) -> list[MeasureTable]:
    """What analysis found of the pretraining."""
    names = {
        options.ssl_experiment.name: options.ssl_tag,
        options.control_experiment.name: CONTROL,
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
            [CONTROL],
            "Same units, data, masks and number of updates; the control trains the "
            "head on the frozen base.",
            gain="masked units",
        ),
        MeasureTable(
            "Forgetting: linear phone probe",
            "frame accuracy (%)",
            probes,
            ["base"],
            f"{where} Replayed languages ({', '.join(options.replay_langs)}) show "
            "what was kept, new ones what was gained.",
            gain="phones",
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


def caveats(options: CommonOptions) -> list[str]:
    """Return the caveats that follow from the corpus."""
    corpora, found = options.corpus.split(), []
    if "mini" in corpora:
        # Joined, it may have given some languages only.
        found.append(SYNTHETIC if corpora == ["mini"] else PARTLY_SYNTHETIC)
    statistics = options.datadir / "manifest.json"
    if corpora == ["manifest"] and statistics.is_file():
        if read_json(statistics).get("channel_confounded"):
            found.append(CONFOUNDED)
    return found


def find_spread(options: Options) -> Spread:
    """Read ``--spread``; a preset's is of the preset's own options.

    Raises:
        RecipeError: One is no CSV of ``bin.experiment``, or not of this system.
    """
    others = sorted(set(options.given) - _OF_ANY_RUN)
    if "spread" not in options.given and options.spread and others:
        text = "--spread: %s of the preset was measured without --%s: how far two runs "
        text += "lie apart is not known here"
        logging.info(text, " ".join(options.spread), others[0])
        return Spread()
    return read_spreads(options.spread, options.ssl_tag)


def question(options: Options, runs: Mapping[Task, Run]) -> Question:
    """Say what the run is about; ``runs`` are those of its heads' tasks."""
    alone = {
        task: run.langs[0]
        for task, run in runs.items()
        if task.track == "asr" and not task.part
    }
    return Question(
        options.ssl_tag,
        ("base", CONTROL),
        tuple(options.new_langs),
        tuple(options.replay_langs),
        alone,
        channel_confounded=CONFOUNDED in caveats(options),
        spread=find_spread(options),
    )


def names(options: Options) -> dict[str, str]:
    """Name the languages as tables show them."""
    langs = [*options.langs, *options.eval_langs]
    return {lang: named(lang) for lang in langs if lang != "all"}


def conditions(options: Options) -> dict[str, str]:
    """Say which data, units and seeds the figures rest on."""
    if not (options.raw / "hours.json").is_file():
        return {"data": options.corpus}
    hours = read_json(options.raw / "hours.json")["languages"]
    heard = [
        f"{lang} {row['hours']:.2f} h ({row['role']})" for lang, row in hours.items()
    ]
    labels = read_json(options.ssl_train / "text.km.json")
    trained = [experiment.name for experiment in options.trainings]
    return {
        "data": f"{options.corpus}; pretraining on {', '.join(heard)}",
        "units": f"{labels['K']}, of {labels['teacher']}, layer {labels['layer']}",
        "training": f"{', '.join(trained)}; config {options.ssl_config}, experts per "
        f"layer {options.allocation or 'none'}",
        "seeds": f"pretraining {options.seed}",
    }


def sources(options: Options, runs: Sequence[Run] = ()) -> dict[str, Any]:
    """Name the folders of --expdir that the page reads beside the results."""
    lamer = "lamer" in options.upstreams or not runs
    return {
        "analysis": options.analysis.name if lamer else None,
        "trainings": [path.name for path in options.trainings] if lamer else [],
        "runs": [run.name for run in runs],
    }


def write_page(options: Options, results: Path) -> None:
    """Write ``report.html`` beside the recipe's RESULTS.md, from a results.json."""
    page = write_report(options.expdir, results, options.results / "report.html")
    logging.info("report: %s", page)


def report_pretraining(options: Options) -> None:
    """Write the page of a pretraining that has no heads yet."""
    path = options.analysis / "results" / RESULTS
    environment = describe_environment(device=options.device)
    results = Results(
        systems={
            "base": "the base before continual pretraining",
            options.ssl_tag: "after continual pretraining",
        },
        tables=pretraining_tables(options),
        environment={k: v for k, v in environment.items() if k != "date"},
        question=question(options, {}),
        caveats=caveats(options),
        conditions=conditions(options),
        names=names(options),
        notes=["Stage 8 wrote this: no head was trained yet (stages 10 to 12)."],
        sources=sources(options),
    )
    write_json(path, results_data(results, collect_figures(results)))
    write_page(options, path)
