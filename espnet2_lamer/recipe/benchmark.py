"""Which heads an evaluation trains: tracks x budgets x sets, and upstreams."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation import mlsuperb_tree, paper_sets
from espnet2_lamer.evaluation.mlsuperb_protocol import (
    FEW_SHOT,
    MONOLINGUAL,
    few_shot_utterances,
)
from espnet2_lamer.evaluation.runs import (
    LID_UNIT,
    MIXED_TRACKS,
    Run,
)
from espnet2_lamer.evaluation.text_units import default_unit
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.upstreams import UpstreamSpec, upstream_specs

#: Tracks of the two stages that train heads.
ASR_TRACKS = ("asr", "multi_asr")
LID_TRACKS = ("lid", "asr_lid")
#: Label of the one test set of a track that mixes languages.
MIXED_TEST = "test"


@dataclass(frozen=True)
class Task:
    """What a head is trained and tested on, whatever the upstream; see ``Run``."""

    track: str
    budget: str
    corpus: str
    langs: tuple[str, ...]
    unit: str
    train_sets: tuple[str, ...]
    dev_sets: tuple[str, ...]
    tests: Mapping[str, tuple[str, ...]]
    lid_reading: str | None = None


def check_benchmark(options: Options) -> None:
    """Refuse values that contradict the benchmark.

    Raises:
        RecipeError: Naming the option, what was found and what is expected.
    """
    if options.benchmark != "own" and "all" in options.budgets:
        raise RecipeError(
            f"--budgets: found 'all', expected 10min or 1h with --benchmark "
            f"{options.benchmark}"
        )
    if options.benchmark != "mlsuperb" and "all" in options.eval_langs:
        raise RecipeError(
            "--eval_langs: found 'all', expected language codes; only --benchmark "
            "mlsuperb knows all languages"
        )
    unknown = sorted(set(options.eval_langs) - set(options.langs) - {"all"})
    if options.benchmark != "mlsuperb" and unknown:
        raise RecipeError(
            f"--eval_langs: found {unknown[0]!r}, expected some of "
            f"{' '.join(options.langs)}, which --new_langs and --replay_langs name"
        )


def eval_langs(options: Options) -> list[str]:
    """Return the languages that are evaluated."""
    return options.eval_langs or options.langs


def planned_tasks(options: Options, tracks: Sequence[str] | None = None) -> list[Task]:
    """List what the options ask for, each for every budget.

    Args:
        options: The recipe's.
        tracks: Only these of ``--tracks``.

    Raises:
        RecipeError: The ML-SUPERB tree is missing or lacks a language.
    """
    chosen = [t for t in options.tracks if tracks is None or t in tracks]
    make = {"own": _own, "paper": _paper, "mlsuperb": _mlsuperb}[options.benchmark]
    return [
        task
        for budget in options.budgets
        for track in chosen
        for task in make(options, track, budget)
    ]


def planned_sets(options: Options) -> list[str]:
    """Return the names of all sets below ``dump/raw`` that the tasks need."""
    names: dict[str, None] = {}
    for task in planned_tasks(options):
        for part in (task.train_sets, task.dev_sets, *task.tests.values()):
            names |= dict.fromkeys(part)
    return list(names)


def planned_runs(options: Options, tracks: Sequence[str] | None = None) -> list[Run]:
    """List every head to train: upstreams, then tasks, learning rates and seeds."""
    tasks = planned_tasks(options, tracks)
    seeds = getattr(options, "eval_seeds", None) or [options.seed]
    rates = getattr(options, "learning_rates", None) or [None]
    return [
        _run(options, spec, task, seed, rate)
        for spec in upstream_specs(options).values()
        for task in tasks
        for rate in rates
        for seed in seeds
    ]


def _run(
    options: Options, spec: UpstreamSpec, task: Task, seed: int, rate: float | None
) -> Run:
    return Run(
        **vars(task),
        benchmark=options.benchmark,
        system=spec.system,
        upstream=spec.source,
        layer=_layer(options, spec, task.track),
        config=str(config_of(options, task.track, task.budget)),
        seed=seed,
        learning_rate=rate,
    )


def _layer(options: Options, spec: UpstreamSpec, track: str) -> int | str:
    """Layer of an upstream: the weighted sum if asked for, its own, the option's."""
    asked, own = options.asr_layer, spec.asr_layer
    if track not in ASR_TRACKS:
        asked, own = options.lid_layer, spec.lid_layer
    return asked if asked == "all" or own is None else own


def config_of(options: Options, track: str, budget: str) -> Path:
    """Return the head's config: ``NAME_10min.yaml`` beside it, where there is one."""
    config = {
        "asr": options.asr_config,
        "multi_asr": options.multi_config,
        "asr_lid": options.multi_config,
        "lid": options.lid_config,
    }[track]
    short = config.with_name(f"{config.stem}_10min{config.suffix}")
    return short if budget == "10min" and short.is_file() else config


def _mixed_unit(options: Options, track: str) -> str:
    return LID_UNIT if track == "lid" else options.multi_unit


def _own(options: Options, track: str, budget: str) -> list[Task]:
    langs = eval_langs(options)

    def train(lang: str) -> str:
        name = f"asr_{lang}_train"
        return name if budget == "all" else f"{name}_{budget}"

    if track == "asr":
        return [
            Task(
                track=track,
                budget=budget,
                corpus="",
                langs=(lang,),
                unit=options.units[lang],
                train_sets=(train(lang),),
                dev_sets=(f"asr_{lang}_dev",),
                tests={lang: (f"asr_{lang}_test",)},
            )
            for lang in langs
        ]
    return [
        Task(
            track=track,
            budget=budget,
            corpus="",
            langs=tuple(langs),
            unit=_mixed_unit(options, track),
            train_sets=tuple(train(lang) for lang in langs),
            dev_sets=tuple(f"asr_{lang}_dev" for lang in langs),
            tests={MIXED_TEST: tuple(f"asr_{lang}_test" for lang in langs)},
        )
    ]


def _paper(options: Options, track: str, budget: str) -> list[Task]:
    langs = eval_langs(options)
    name = paper_sets.set_name
    corpora = paper_sets.PAPER_CORPORA
    if track == "asr":
        return [
            Task(
                track=track,
                budget=budget,
                corpus=corpus,
                langs=(lang,),
                unit=options.units[lang],
                train_sets=(name(corpus, lang, "train", budget),),
                dev_sets=(name(corpus, lang, "dev"),),
                tests={
                    f"{lang}_{other}": (name(other, lang, "test"),)
                    for other in corpora
                    if other == corpus or options.cross_corpus
                },
            )
            for corpus in corpora
            for lang in langs
        ]
    pairs = [(corpus, lang) for corpus in corpora for lang in langs]
    suffix = (paper_sets.TOTAL,) if options.lid_reading == "total" else ()
    return [
        Task(
            track=track,
            budget=budget,
            corpus="",
            langs=tuple(langs),
            unit=_mixed_unit(options, track),
            train_sets=tuple(name(c, x, "train", budget, *suffix) for c, x in pairs),
            dev_sets=tuple(name(c, x, "dev") for c, x in pairs),
            tests={MIXED_TEST: tuple(name(c, x, "test") for c, x in pairs)},
            lid_reading=options.lid_reading,
        )
    ]


def _mlsuperb(options: Options, track: str, budget: str) -> list[Task]:
    langs = eval_langs(options)
    pairs = list(mlsuperb_tree.scan_tree(options.mlsuperb, langs))
    name = mlsuperb_tree.set_name
    if track in MIXED_TRACKS:

        def train(dataset: str, lang: str) -> str:
            part = "train_few" if lang in FEW_SHOT else "train"
            return name(dataset, lang, part, budget)

        trained = [
            (d, x) for d, x in pairs if x not in FEW_SHOT or few_shot_utterances(d, x)
        ]
        return [
            Task(
                track=track,
                budget=budget,
                corpus="",
                langs=tuple(dict.fromkeys(x for _, x in pairs)),
                unit=_mixed_unit(options, track),
                train_sets=tuple(train(d, x) for d, x in trained),
                dev_sets=tuple(name(d, x, "dev") for d, x in pairs),
                tests={MIXED_TEST: tuple(name(d, x, "test") for d, x in pairs)},
            )
        ]
    tasks = []
    for label, (lang, dataset) in _monolingual(pairs, "all" in langs).items():
        # The official test set of a language covers all its data sets.
        tests = tuple(name(d, x, "test") for d, x in pairs if x == lang)
        tasks.append(
            Task(
                track=track,
                budget=budget,
                corpus=dataset,
                langs=(lang,),
                unit=options.units.get(lang, default_unit(lang)),
                train_sets=(name(dataset, lang, "train", budget),),
                dev_sets=(name(dataset, lang, "dev"),),
                tests={label: tests},
            )
        )
    return tasks


def _monolingual(
    pairs: Sequence[tuple[str, str]], everything: bool
) -> dict[str, tuple[str, str]]:
    """Return the official tasks; for a language without one, a task per data set."""
    tasks = {label: task for label, task in MONOLINGUAL.items() if task[::-1] in pairs}
    if not everything:
        covered = {lang for lang, _ in MONOLINGUAL.values()}
        tasks |= {f"{x}_{d}": (x, d) for d, x in pairs if x not in covered}
    return tasks


def packages(options: Options) -> dict[str, Path]:
    """Return the zips by name: the pretrained model and every head on it."""
    names = [options.ssl_experiment.name]
    if "lamer" in options.upstreams:
        names += [r.name for r in planned_runs(options) if r.system == options.ssl_tag]
    return {name: options.expdir / "packed" / f"{name}.zip" for name in names}


def adapter_files(options: Options) -> dict[str, Path]:
    """Return the adapter file by name; none where the whole model trains."""
    if not options.allocation:
        return {}
    name = options.ssl_experiment.name
    return {f"{name}.adapter": options.expdir / "packed" / f"{name}.safetensors"}
