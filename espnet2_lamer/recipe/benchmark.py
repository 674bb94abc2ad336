"""Which heads an evaluation trains: tracks x budgets x sets, and upstreams."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet2_lamer.constants import LID_ROUTED, TUNES
from espnet2_lamer.evaluation import mlsuperb, mlsuperb2, paper_sets
from espnet2_lamer.evaluation.benchmark_sets import missing_text
from espnet2_lamer.evaluation.mlsuperb import FEW_SHOT, MONOLINGUAL, few_shot_utterances
from espnet2_lamer.evaluation.mlsuperb2_tree import planned_languages
from espnet2_lamer.evaluation.runs import LID_UNIT, LM_SUFFIX, MIXED_TRACKS, Run
from espnet2_lamer.evaluation.text_units import default_unit
from espnet2_lamer.fileio.trust import S3PRL_PREFIX
from espnet2_lamer.recipe.declaration import as_text, refused
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
    corpora: tuple[str, ...] = ()


def check_benchmark(options: Options) -> None:
    """Refuse values that contradict the benchmark."""
    if options.benchmark == "mlsuperb2":
        _check_mlsuperb2(options)
        return
    if options.benchmark != "own" and "all" in options.budgets:
        expected = f"10min or 1h with --benchmark {options.benchmark}"
        raise refused("budgets", "'all'", expected)
    _check_corpora(options)
    if options.benchmark == "mlsuperb":
        _check_official_units(options)
        return
    if "all" in options.eval_langs:
        known = "language codes; only --benchmark mlsuperb knows all languages"
        raise refused("eval_langs", "'all'", known)
    unknown = sorted(set(options.eval_langs) - set(options.langs))
    if unknown:
        known = " ".join(options.langs)
        known = f"some of {known}, which --new_langs and --replay_langs name"
        raise refused("eval_langs", repr(unknown[0]), known)


def _check_corpora(options: Options) -> None:
    known = {
        "own": (),
        "paper": paper_sets.PAPER_CORPORA,
        "mlsuperb": mlsuperb.DATASETS,
    }
    chosen, names = options.eval_corpora, known[options.benchmark]
    wrong = [corpus for corpus in chosen if corpus not in names]
    if wrong or len({*chosen}) < len(chosen):
        found = repr(wrong[0]) if wrong else as_text(chosen)
        expected = f"different ones of {', '.join(names)}" if names else "none"
        expected += f" with --benchmark {options.benchmark}"
        raise refused("eval_corpora", found, expected)


def _check_official_units(options: Options) -> None:
    """Say before days of training what will have no SUPERB score."""
    if "asr" not in options.tracks or options.eval_corpora:
        return
    if "all" in options.eval_langs and (reason := mlsuperb.other_units(options.units)):
        logging.warning("no SUPERB score: %s", reason)


def eval_langs(options: Options) -> list[str]:
    """Return the languages that are evaluated."""
    return options.eval_langs or options.langs


def eval_corpora(options: Options) -> Sequence[str]:
    """Return the corpora of the paper's sets that are evaluated."""
    return options.eval_corpora or paper_sets.PAPER_CORPORA


def without_text(options: Options) -> dict[str, str]:
    """Return languages that have no heads with text, and the split that has none.

    Benchmarks with data of their own have text.
    """
    if options.benchmark != "own":
        return {}
    places = (options.datadir, options.raw)
    found = {lang: missing_text(places, lang) for lang in eval_langs(options)}
    return {lang: split for lang, split in found.items() if split}


def alone(options: Options) -> str:
    """Return the one language where identification was asked for and has no other."""
    langs = eval_langs(options)
    asked = "lid" in options.tracks
    return langs[0] if asked and len(langs) == 1 and langs != ["all"] else ""


def planned_tasks(options: Options, tracks: Sequence[str] | None = None) -> list[Task]:
    """List what the options ask for, each for every budget; if given, of ``tracks``.

    Raises:
        RecipeError: The ML-SUPERB tree is missing or lacks a language.
    """
    make = {
        "own": _own,
        "paper": _paper,
        "mlsuperb": _mlsuperb,
        "mlsuperb2": _mlsuperb2,
    }[options.benchmark]
    return [
        task
        for budget in options.budgets
        for track in options.tracks
        if tracks is None or track in tracks
        if track != "lid" or not alone(options)
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
    """List every head: upstreams, then tasks, what is tuned, learning rates, seeds."""
    tasks = planned_tasks(options, tracks)
    return [
        Run(
            **vars(task),
            benchmark=options.benchmark,
            system=tuned_system(spec.system, tune, mode),
            upstream=spec.source,
            layer=_layer(options, spec, task.track),
            config=str(_config(options, task.track, task.budget, tune)),
            seed=seed,
            learning_rate=rate,
            tune=tune,
            upstream_mode=mode,
        )
        for name, spec in upstream_specs(options).items()
        for task in tasks
        for tune in _tunes(options, name, task.track)
        for mode in _modes(options, tune)
        for rate in options.learning_rates or [None]
        for seed in options.eval_seeds or [options.seed]
    ]


def tuned_system(system: str, tune: str, mode: str = "eval") -> str:
    """Name a system in tables and directories by what was tuned of it, and how."""
    name = system if tune == "head" else f"{system}_{tune}_tuned"
    return name if mode == "eval" else f"{name}_{mode}_mode"


def _modes(options: Options, tune: str) -> Sequence[str]:
    """Return the modes of an upstream; one that is tuned stays in eval mode."""
    return options.upstream_mode if tune == "head" else ("eval",)


def can_tune(options: Options, upstream: str, tune: str) -> bool:
    """Whether an upstream of ``--upstreams`` has what ``tune`` trains.

    Of models beside the recipe's own only training finds out.
    """
    no_experts = upstream in ("random", "base")
    no_experts |= upstream == "lamer" and not options.allocation
    if tune == "experts":
        return not no_experts
    if tune == LID_ROUTED and upstream == "lamer":
        return no_experts
    return tune == "head" or not upstream.startswith(S3PRL_PREFIX)


def _tunes(options: Options, upstream: str, track: str) -> list[str]:
    """Return what is tuned of an upstream; identification has the frozen one alone.

    Languages route where there are several.
    """
    if track not in ASR_TRACKS:
        return ["head"]
    chosen = [tune for tune in options.tune if can_tune(options, upstream, tune)]
    return [tune for tune in chosen if tune != LID_ROUTED or track in MIXED_TRACKS]


def describe_systems(options: Options) -> dict[str, str]:
    """Say what each system of the tables is, by its name."""
    found = {}
    tuned = {
        "experts": "experts and routers",
        "all": "the whole transformer",
        LID_ROUTED: "LoRA, in upper layers one of each language,",
    }
    for name, spec in upstream_specs(options).items():
        for tune in dict.fromkeys(["head", *options.tune]):
            if not can_tune(options, name, tune):
                continue
            for mode in _modes(options, tune):
                system, text = tuned_system(spec.system, tune, mode), spec.description
                if tune != "head":
                    text += f"; {tuned[tune]} tuned with the head, no frozen probe"
                if mode == "train":
                    text += "; frozen, but with its dropout while heads train"
                found[system] = text
                if options.language_models:
                    kinds = [f"a {options.ngram_num}-gram"] * options.use_ngram
                    kinds += ["a transformer LM"] * options.use_lm
                    with_lm = f"{text}; ASR with {' and '.join(kinds)}"
                    found[system + LM_SUFFIX] = with_lm
    return found


def _layer(options: Options, spec: UpstreamSpec, track: str) -> int | str:
    """Layer of an upstream: the weighted sum if asked for, its own, the option's."""
    asked, own = options.asr_layer, spec.asr_layer
    if track not in ASR_TRACKS:
        asked, own = options.lid_layer, spec.lid_layer
    return asked if asked == "all" or own is None else own


def _config(options: Options, track: str, budget: str, tune: str) -> Path:
    """Return the head's config: ``NAME_10min.yaml`` beside it, where there is one."""
    heads = {"asr": options.asr_config, "lid": options.lid_config}
    config = heads.get(track, options.multi_config)
    config = config if tune == "head" else options.finetune_config
    short = config.with_name(f"{config.stem}_10min{config.suffix}")
    return short if budget == "10min" and short.is_file() else config


def _alone(
    options: Options,
    budget: str,
    corpus: str,
    lang: str,
    train: str,
    dev: str,
    tests: Mapping[str, tuple[str, ...]],
) -> Task:
    """A task of one language and corpus."""
    official = options.benchmark == "mlsuperb"
    unit = options.units.get(lang) or default_unit(lang, official)
    sets = (train,), (dev,), tests
    corpora = tuple(options.eval_corpora)
    return Task("asr", budget, corpus, (lang,), unit, *sets, corpora=corpora)


def _mixed(
    options: Options,
    track: str,
    budget: str,
    train: Iterable[str],
    dev: Iterable[str],
    test: Iterable[str],
    langs: Sequence[str],
    lid_reading: str | None = None,
) -> Task:
    """A task that mixes languages and corpora."""
    unit = LID_UNIT if track == "lid" else options.multi_unit
    tests = {MIXED_TEST: tuple(test)}
    sets = (tuple(train), tuple(dev), tests)
    corpora = tuple(options.eval_corpora)
    return Task(track, budget, "", tuple(langs), unit, *sets, lid_reading, corpora)


def _own(options: Options, track: str, budget: str) -> list[Task]:
    silent = without_text(options) if track != "lid" else {}
    langs = [lang for lang in eval_langs(options) if lang not in silent]
    if not langs:
        return []
    size = "" if budget == "all" else f"_{budget}"
    parts = (f"train{size}", "dev", "test")
    sets = [[f"asr_{lang}_{part}" for lang in langs] for part in parts]
    if track in MIXED_TRACKS:
        return [_mixed(options, track, budget, *sets, langs)]
    return [
        _alone(options, budget, "", lang, train, dev, {lang: (test,)})
        for lang, train, dev, test in zip(langs, *sets, strict=True)
    ]


def _paper(options: Options, track: str, budget: str) -> list[Task]:
    langs, name = eval_langs(options), paper_sets.set_name
    corpora = eval_corpora(options)
    pairs = [(corpus, x) for corpus in corpora for x in langs]
    if track in MIXED_TRACKS:
        reading = options.lid_reading
        suffix = (paper_sets.TOTAL,) if reading == "total" else ()
        train = [name(c, x, "train", budget, *suffix) for c, x in pairs]
        sets = [[name(c, x, part) for c, x in pairs] for part in ("dev", "test")]
        return [_mixed(options, track, budget, train, *sets, langs, reading)]
    tasks = []
    for corpus, lang in pairs:
        tests = {
            f"{lang}_{other}": (name(other, lang, "test"),)
            for other in corpora
            if other == corpus or options.cross_corpus
        }
        train = name(corpus, lang, "train", budget)
        dev = name(corpus, lang, "dev")
        tasks.append(_alone(options, budget, corpus, lang, train, dev, tests))
    return tasks


def _mlsuperb(options: Options, track: str, budget: str) -> list[Task]:
    langs, name = eval_langs(options), mlsuperb.set_name
    chosen = options.eval_corpora
    pairs = list(mlsuperb.scan_tree(options.mlsuperb, langs, chosen))
    if track in MIXED_TRACKS:
        reading = options.lid_reading if chosen else None
        total = [mlsuperb.TOTAL] if reading == "total" else []
        train = [
            name(d, x, "train_few", budget)
            if x in FEW_SHOT
            else name(d, x, "train", budget, *total)
            for d, x in pairs
            if x not in FEW_SHOT or few_shot_utterances(d, x)
        ]
        sets = [[name(d, x, part) for d, x in pairs] for part in ("dev", "test")]
        found = dict.fromkeys(x for _, x in pairs)
        return [_mixed(options, track, budget, train, *sets, list(found), reading)]
    tasks = []
    apart = {f"{x}_{d}": (x, d) for d, x in pairs}
    asked = apart if chosen else _monolingual(pairs, "all" in langs)
    for label, (lang, dataset) in asked.items():
        # The official test set of a language covers all its data sets.
        tested = [(dataset, lang)] if chosen else [p for p in pairs if p[1] == lang]
        tests = {label: tuple(name(d, x, "test") for d, x in tested)}
        train = name(dataset, lang, "train", budget)
        dev = name(dataset, lang, "dev")
        tasks.append(_alone(options, budget, dataset, lang, train, dev, tests))
    return tasks


def _check_mlsuperb2(options: Options) -> None:
    for name, expected in (("tracks", ["asr_lid"]), ("budgets", ["all"])):
        if getattr(options, name) != expected:
            only = f"{expected[0]} with --benchmark mlsuperb2"
            raise refused(name, repr(as_text(getattr(options, name))), only)
    if options.lid_layer != "all":
        text = "--lid_layer %s: heads of ML-SUPERB 2.0 read the weighted sum of all "
        text += "layers; say --lid_layer all for figures that compare with its own"
        logging.warning(text, options.lid_layer)


def _mlsuperb2(options: Options, track: str, budget: str) -> list[Task]:
    name = mlsuperb2.set_name
    found = planned_languages(options.mlsuperb, eval_langs(options))
    langs = found.pop("train")
    train = tuple(name(lang, "train") for lang in langs)
    valid = tuple(name(lang, mlsuperb2.VALID) for lang in found["dev"])
    tests = {s: tuple(name(x, s) for x in there) for s, there in found.items()}
    unit = options.multi_unit
    return [Task(track, budget, "", tuple(langs), unit, train, valid, tests)]


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
        pairs = [(tune, mode) for tune in TUNES for mode in _modes(options, tune)]
        systems = {tuned_system(options.ssl_tag, *pair) for pair in pairs}
        names += [r.name for r in planned_runs(options) if r.system in systems]
    return {name: options.packed / f"{name}.zip" for name in names}


def adapter_files(options: Options) -> dict[str, Path]:
    """Return the adapter file by name; none where the whole model trains."""
    if not options.allocation:
        return {}
    name = options.ssl_experiment.name
    return {f"{name}.adapter": options.packed / f"{name}.safetensors"}
