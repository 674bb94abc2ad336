"""The table of stages: what each depends on, reads, writes and runs."""

from collections.abc import Sequence
from pathlib import Path

from espnet2_lamer.evaluation.mlsuperb import scan_tree
from espnet2_lamer.recipe.benchmark import (
    ASR_TRACKS,
    LID_TRACKS,
    adapter_files,
    eval_langs,
    packages,
    planned_runs,
    planned_sets,
)
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.runner import Stage
from espnet2_lamer.recipe.upstreams import (
    BUILT_IN,
    CONFIGS,
    upstream_specs,
    weight_files,
)

# Heavy modules are imported inside the stages, so that a run in which every stage is
# done ends in a second or two.


# What decides which heads there are.
_BENCHMARK_OPTIONS = (
    *("benchmark", "budgets", "tracks", "eval_langs", "cross_corpus", "lid_reading"),
    *("multi_unit", "nbpe"),
)
# What multiplies them.
_HEAD_OPTIONS = ("upstreams", "seed", "eval_seeds", "learning_rates")
_SELECTION_REPORTS = ("hours.json", "overlap.tsv", "skipped_audio.tsv")


def _lazy(module: str, function: str):
    def call(options: Options):
        from importlib import import_module

        return getattr(import_module(f"espnet2_lamer.recipe.{module}"), function)(
            options
        )

    return call


def _parallel(module: str, function: str):
    """Like ``_lazy``, for a stage whose joblib calls may run on a cluster."""
    run = _lazy(module, function)

    def call(options: Options):
        from espnet2_lamer.parallel import workers

        with workers(options.dask):
            return run(options)

    return call


def _nothing(options: Options) -> list[Path]:
    return []


def _mini_sums(options: Options) -> list[Path]:
    path = Path("mini") / "SHA256SUMS"
    return [path] if path.is_file() else []


def _ssl_sets(options: Options) -> list[Path]:
    return [
        options.raw / split / name
        for split in ("ssl_train", "ssl_dev")
        for name in ("wav.scp", "utt2num_samples", "utt2lang")
    ]


def _corpus_sets(options: Options) -> list[Path]:
    return [
        options.datadir / f"train_{lang}" / name
        for lang in options.langs
        for name in ("wav.scp", "utt2lang")
    ]


def _selection_inputs(options: Options) -> list[Path]:
    """Everything that decides what pretraining takes, evaluation sets included."""
    from espnet2_lamer.data.overlap import evaluation_dirs

    tables = [
        options.datadir / f"{split}_{lang}" / name
        for split in ("train", "dev")
        for lang in options.langs
        for name in ("text", "utt2spk", "utt2source")
    ]
    tables += [
        folder / name
        for folder in evaluation_dirs(options.datadir, options.langs)
        for name in ("wav.scp", "text")
    ]
    if options.replay_sampling == "cluster" and options.replay_clusters:
        tables.append(Path(options.replay_clusters))
    there = [path for path in tables if path.is_file()]
    return list(dict.fromkeys([*_corpus_sets(options), *there]))


def _features(options: Options) -> list[Path]:
    return [options.features / "index.json"]


def _codebook(options: Options) -> list[Path]:
    return [options.codebook]


def _labels(options: Options) -> list[Path]:
    return [options.dumpdir / "units" / "tokens.txt"] + [
        options.raw / split / name
        for split in ("ssl_train", "ssl_dev")
        for name in ("text.km", "text.km.json")
    ]


def _shapes(options: Options) -> list[Path]:
    return [
        options.stats / split / name
        for split in ("train", "valid")
        for name in ("speech_shape", "text_shape")
    ]


def _experiments(options: Options) -> list[Path]:
    control = [options.control_experiment] if options.control else []
    return [options.ssl_experiment, *control]


def _trained(options: Options) -> list[Path]:
    return [e / "parameters.json" for e in _experiments(options)] + [
        options.ssl_experiment / "config.yaml",
        options.ssl_experiment / "valid.loss_m.best.pth",
    ]


def _reports(options: Options) -> list[Path]:
    names = ["masked_accuracy.json", "forgetting.json", "routing.json"]
    return [options.analysis / name for name in names]


def _reports_used(options: Options) -> list[Path]:
    """Reports on the pretraining, where it is among the upstreams."""
    return _reports(options) if "lamer" in options.upstreams else []


def _set_sources(options: Options) -> list[Path]:
    """What stage 9 reads: sets of stage 1, or the transcripts of ML-SUPERB."""
    if options.benchmark == "mlsuperb":
        folders = scan_tree(options.mlsuperb, eval_langs(options)).values()
        return [p for folder in folders for p in sorted(folder.glob("transcript_*"))]
    if options.benchmark == "own":
        return _corpus_sets(options)
    from espnet2_lamer.data.corpora import EVAL_DIR
    from espnet2_lamer.evaluation.paper_sets import PAPER_CORPORA

    return [
        *options.eval_list_files,
        *(
            options.datadir / EVAL_DIR / corpus / f"{split}_{lang}" / name
            for corpus in PAPER_CORPORA
            for lang in eval_langs(options)
            for split in ("train", "dev", "test")
            for name in ("wav.scp", "text")
        ),
    ]


def _eval_sets(options: Options) -> list[Path]:
    return [
        options.raw / name / file
        for name in planned_sets(options)
        for file in ("wav.scp", "text", "text.char", "utt2lang", "set.json")
    ]


def _heads(options: Options, tracks: Sequence[str]) -> list[Path]:
    return [
        run.directory(options.expdir) / name
        for run in planned_runs(options, tracks)
        for name in ("run.json", "final/config.yaml", "final/model.pth")
    ]


def _asr_heads(options: Options) -> list[Path]:
    return _heads(options, ASR_TRACKS)


def _lid_heads(options: Options) -> list[Path]:
    return _heads(options, LID_TRACKS)


def _configs(options: Options, tracks: Sequence[str]) -> list[Path]:
    paths = [Path(run.config) for run in planned_runs(options, tracks)]
    paths += [
        CONFIGS / f"{name}.yaml"
        for name in options.upstreams
        if (CONFIGS / f"{name}.yaml").is_file()
    ]
    return list(dict.fromkeys(paths))


def _results(options: Options) -> list[Path]:
    return [options.results / n for n in ("RESULTS.md", "results.json", "results.csv")]


def _published(options: Options) -> list[Path]:
    return [*packages(options).values(), *adapter_files(options).values()]


def _variant(options: Options) -> str:
    return options.variant


def _evaluation(options: Options) -> str:
    """Evaluations of a pretraining on several benchmarks stand side by side."""
    benchmark = "" if options.benchmark == "own" else f"_{options.benchmark}"
    return options.variant + benchmark


def _upstreams(options: Options) -> list[Path]:
    built_in = set(BUILT_IN) & set(options.upstreams)
    files = [options.checkpoints] if built_in else []
    if "lamer" in options.upstreams:
        files += _trained(options)
    for name, spec in upstream_specs(options).items():
        files += [] if name in BUILT_IN else weight_files(spec.source)
    return files


STAGES = [
    Stage(
        0,
        "base and teacher checkpoints",
        ("base", "teacher", "retrain", "seed", "allocation", "asr_layer", "lid_layer"),
        _mini_sums,
        lambda o: [o.checkpoints, o.random_upstream / "model.safetensors"],
        _lazy("checkpoints", "prepare_checkpoints"),
    ),
    Stage(
        1,
        "data preparation",
        (
            *("corpus", "corpus_paths", "manifest", "exclude_sources"),
            *("new_langs", "replay_langs", "seed"),
        ),
        lambda o: o.manifest_files,
        _corpus_sets,
        _lazy("data", "prepare_corpus"),
    ),
    Stage(
        2,
        "formatting and selection",
        (
            *("new_langs", "replay_langs", "replay_hours", "replay_sampling"),
            *("replay_alpha", "replay_clusters", "dev_hours", "min_duration"),
            *("max_duration", "max_bad_audio", "drop_overlap", "overlap_tree", "seed"),
        ),
        _selection_inputs,
        lambda o: [*_ssl_sets(o), *(o.raw / name for name in _SELECTION_REPORTS)],
        _parallel("data", "format_ssl"),
    ),
    Stage(
        3,
        "teacher features",
        ("teacher_layer", "kmeans_hours", "seed"),
        lambda o: [o.checkpoints, *_ssl_sets(o)[:3]],
        _features,
        _parallel("units", "dump"),
    ),
    Stage(
        4,
        "k-means",
        ("n_clusters", "seed"),
        _features,
        _codebook,
        _parallel("units", "cluster"),
    ),
    Stage(
        5,
        "pseudo-labels",
        ("teacher_layer", "n_clusters"),
        lambda o: [o.checkpoints, *_codebook(o), *_ssl_sets(o)],
        lambda o: [*_labels(o), o.expdir / "label_quality.json"],
        _parallel("units", "label"),
    ),
    Stage(
        6,
        "statistics",
        (),
        lambda o: [*_ssl_sets(o), *_labels(o)],
        _shapes,
        _lazy("units", "shapes"),
    ),
    Stage(
        7,
        "continual pretraining",
        ("allocation", "n_clusters", "control", "seed"),
        lambda o: [o.checkpoints, o.ssl_config, *_labels(o), *_shapes(o)],
        _trained,
        _lazy("pretraining", "continue_pretraining"),
        keep=_experiments,
        variant=_variant,
    ),
    Stage(
        8,
        "analysis",
        ("asr_layer", "analysed", "seed"),
        lambda o: [o.checkpoints, *_trained(o), *_labels(o)],
        _reports,
        _lazy("analysis", "analyse"),
        variant=_variant,
    ),
    Stage(
        9,
        "ML-SUPERB data",
        (
            *("new_langs", "replay_langs", "units", "max_bad_audio", "seed"),
            *_BENCHMARK_OPTIONS,
            *("mlsuperb", "eval_lists"),
        ),
        _set_sources,
        _eval_sets,
        _parallel("data", "format_evaluation"),
    ),
    Stage(
        10,
        "ASR fine-tuning",
        (
            *("units", "asr_layer", "store_dtype"),
            *_BENCHMARK_OPTIONS,
            *_HEAD_OPTIONS,
        ),
        lambda o: [*_upstreams(o), *_configs(o, ASR_TRACKS), *_eval_sets(o)],
        _asr_heads,
        _lazy("downstream", "train_asr"),
        variant=_evaluation,
    ),
    Stage(
        11,
        "LID fine-tuning",
        ("lid_layer", "store_dtype", *_BENCHMARK_OPTIONS, *_HEAD_OPTIONS),
        lambda o: [*_upstreams(o), *_configs(o, LID_TRACKS), *_eval_sets(o)],
        _lid_heads,
        _lazy("downstream", "train_lid"),
        variant=_evaluation,
    ),
    Stage(
        12,
        "decoding and results",
        ("units", "baselines", *_BENCHMARK_OPTIONS, *_HEAD_OPTIONS),
        lambda o: [*_asr_heads(o), *_lid_heads(o), *_reports_used(o), *_eval_sets(o)],
        _results,
        _lazy("scoring", "score"),
        variant=_evaluation,
    ),
    Stage(
        13,
        "packing",
        ("upstreams",),
        lambda o: [o.checkpoints, *_trained(o), *_codebook(o), *_results(o)],
        _published,
        _lazy("packing", "pack"),
        variant=_variant,
    ),
    Stage(
        14,
        "upload",
        ("hf_repo", "dry_run"),
        lambda o: _published(o) if o.hf_repo or o.dry_run else [],
        _nothing,
        _lazy("packing", "upload"),
        variant=_variant,
        # A list that was shown once is asked for again.
        repeat=lambda o: o.dry_run,
    ),
]

# In place of stage 7 and all that follow it.
_SANITY = Stage(
    7,
    "sanity check of pretraining",
    ("allocation", "n_clusters", "seed"),
    STAGES[7].inputs,
    lambda o: [o.ssl_experiment / "sanity.json"],
    _lazy("pretraining", "check_one_batch"),
    variant=lambda o: f"{o.variant}_sanity",
)


def stages_of(options: Options) -> list[Stage]:
    """Every stage; with ``--sanity true`` those up to the sanity check."""
    return [*STAGES[:7], _SANITY] if options.sanity else STAGES
