"""The stages of ssl1: Lamer-SSL and its siblings on HuBERT.

Heavy modules are imported inside the stages, so that a run in which every stage is done
ends in a second or two.
"""

from pathlib import Path

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe import files
from espnet2_lamer.recipe.benchmark import (
    ASR_TRACKS,
    LID_TRACKS,
    adapter_files,
    packages,
)
from espnet2_lamer.recipe.checkpoints import teacher_path
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.settle import settle
from espnet2_lamer.recipe.stage import Command, Recipe, Stage, command

ssl1 = Recipe(
    "ssl1",
    "Lamer-SSL: extend a HuBERT to new languages with layer-aware LoRA experts. "
    "Without options: the mini preset, from data to packed models, on a CPU. A stage "
    "whose inputs and options did not change is skipped; one that was killed goes on.",
    Options,
    Path("conf/presets"),
    settle,
)

# What decides which heads there are.
_BENCHMARK = (
    "benchmark budgets tracks eval_langs cross_corpus lid_reading multi_unit nbpe"
)
# What multiplies them.
_HEADS = "upstreams seed eval_seeds learning_rates"


def _workers(options: Options) -> dict:
    """Where the commands of units run."""
    return {"dask": options.dask, "device": "cuda" if options.ngpu else "cpu"}


def _teacher(options: Options) -> dict:
    # Processes share one GPU: two keep it busy, more would only take its memory.
    return {
        "teacher": teacher_path(options),
        "layer": options.teacher_layer,
        "trust_s3prl_files": options.trust_s3prl_files,
        "nj": min(options.nj, 2) if options.ngpu else options.nj,
        **_workers(options),
    }


@ssl1.stage(
    0,
    "base and teacher checkpoints",
    "base teacher retrain seed allocation asr_layer lid_layer",
    inputs=files.mini_sums,
    outputs=lambda o: [o.checkpoints, o.random_upstream / "model.safetensors"],
    shared=True,
)
def checkpoints(options: Options) -> None:
    """Find, verify and record base and teacher; write the random upstream."""
    from espnet2_lamer.recipe.base_training import prepare_checkpoints

    prepare_checkpoints(options)


@ssl1.stage(
    1,
    "data preparation",
    "corpus corpus_paths manifest exclude_sources new_langs replay_langs seed",
    inputs=lambda o: o.manifest_files,
    outputs=files.corpus_sets,
    shared=True,
)
def data(options: Options) -> None:
    """Prepare corpora as ``local/data.py`` does, and join public ones."""
    from espnet2_lamer.recipe.data import prepare_corpus

    prepare_corpus(options)


@ssl1.stage(
    2,
    "formatting and selection",
    "new_langs replay_langs replay_hours replay_sampling replay_alpha "
    "replay_clusters dev_hours min_duration max_duration max_bad_audio "
    "drop_overlap overlap_tree seed",
    inputs=files.selection_inputs,
    outputs=files.selection_outputs,
    shared=True,
)
def selection(options: Options) -> None:
    """Write 16 kHz mono audio of the right lengths, a replay sample, the overlap."""
    from espnet2_lamer.parallel import workers
    from espnet2_lamer.recipe.data import format_ssl

    with workers(options.dask):
        format_ssl(options)


@ssl1.commands(
    3,
    "teacher features",
    "teacher_layer kmeans_hours seed",
    inputs=lambda o: [o.checkpoints, *files.ssl_sets(o)[:3]],
    outputs=files.features,
    shared=True,
)
def features(options: Options) -> list[Command]:
    """Store features of sampled hours per language."""
    train = options.raw / "ssl_train"
    return [
        command(
            "dump_features",
            **_teacher(options),
            wav_scp=train / "wav.scp",
            utt2lang=train / "utt2lang",
            hours_per_lang=options.kmeans_hours,
            seed=options.seed,
            output=options.features,
        )
    ]


@ssl1.commands(
    4,
    "k-means",
    "n_clusters seed",
    inputs=files.features,
    outputs=files.codebook,
    shared=True,
)
def clusters(options: Options) -> list[Command]:
    """Cluster the features, and say how good the clusters are."""
    return [
        command(
            "learn_kmeans",
            features=options.features,
            n_clusters=options.n_clusters,
            seed=options.seed,
            output=options.codebook,
            **_workers(options) | {"nj": options.nj},
        )
    ]


@ssl1.commands(
    5,
    "pseudo-labels",
    "teacher_layer n_clusters",
    inputs=lambda o: [o.checkpoints, *files.codebook(o), *files.ssl_sets(o)],
    outputs=lambda o: [*files.labels(o), o.expdir / "label_quality.json"],
    shared=True,
)
def labels(options: Options) -> list[Command]:
    """Label every utterance with units, measure them, write the token list."""
    dev = options.raw / "ssl_dev"
    assigned = [
        command(
            "assign_units",
            **_teacher(options),
            codebook=options.codebook,
            n_clusters=options.n_clusters,
            wav_scp=directory / "wav.scp",
            output=directory / "text.km",
            token_list=options.dumpdir / "units" / "tokens.txt",
        )
        for directory in (options.raw / "ssl_train", dev)
    ]
    quality = command(
        "label_quality",
        labels=dev / "text.km",
        n_clusters=options.n_clusters,
        data_dir=dev,
        output=options.expdir / "label_quality.json",
    )
    return [*assigned, quality]


@ssl1.stage(
    6,
    "statistics",
    inputs=lambda o: [*files.ssl_sets(o), *files.labels(o)],
    outputs=files.shapes,
    shared=True,
)
def statistics(options: Options) -> None:
    """Write shape files, which follow from the sample counts."""
    from espnet2_lamer.recipe.pretraining import write_shapes

    write_shapes(options.raw / "ssl_train", options.stats / "train")
    write_shapes(options.raw / "ssl_dev", options.stats / "valid")


@ssl1.stage(
    7,
    "continual pretraining",
    "allocation n_clusters control seed",
    inputs=lambda o: [o.checkpoints, o.ssl_config, *files.labels(o), *files.shapes(o)],
    outputs=files.trained,
    keep=lambda o: o.trainings,
    variant=lambda o: o.variant,
)
def pretraining(options: Options) -> None:
    """Train the head-only control, and Lamer on the same data and updates."""
    from espnet2_lamer.recipe.pretraining import continue_pretraining

    continue_pretraining(options)


def sanity(options: Options) -> None:
    """Instead of pretraining: can the model learn one batch?"""
    from espnet2_lamer.recipe.pretraining import check_one_batch

    check_one_batch(options)


@ssl1.stage(
    8,
    "analysis",
    "asr_layer analysed seed",
    inputs=lambda o: [o.checkpoints, *files.trained(o), *files.labels(o)],
    outputs=files.reports,
    variant=lambda o: o.variant,
)
def analysis(options: Options) -> None:
    """Measure what was learnt, what was forgotten, and how the routers decide."""
    from espnet2_lamer.recipe.analysis import analyse

    analyse(options)


@ssl1.stage(
    9,
    "ML-SUPERB data",
    f"new_langs replay_langs units max_bad_audio seed {_BENCHMARK} mlsuperb eval_lists",
    inputs=files.set_sources,
    outputs=files.eval_sets,
    shared=True,
)
def evaluation_sets(options: Options) -> None:
    """Write train, dev and test sets of the benchmark, in each language's unit."""
    from espnet2_lamer.parallel import workers
    from espnet2_lamer.recipe.data import format_evaluation

    with workers(options.dask):
        format_evaluation(options)


@ssl1.stage(
    10,
    "ASR fine-tuning",
    f"units asr_layer store_dtype {_BENCHMARK} {_HEADS}",
    inputs=lambda o: files.of_heads(o, ASR_TRACKS),
    outputs=lambda o: files.heads(o, ASR_TRACKS),
    variant=lambda o: o.evaluation,
)
def asr_heads(options: Options) -> None:
    """Train the heads of the tracks asr and multi_asr on frozen upstreams."""
    from espnet2_lamer.recipe.downstream import train_heads

    train_heads(options, ASR_TRACKS)


@ssl1.stage(
    11,
    "LID fine-tuning",
    f"lid_layer store_dtype {_BENCHMARK} {_HEADS}",
    inputs=lambda o: files.of_heads(o, LID_TRACKS),
    outputs=lambda o: files.heads(o, LID_TRACKS),
    variant=lambda o: o.evaluation,
)
def lid_heads(options: Options) -> None:
    """Train the heads of the tracks lid and asr_lid on frozen upstreams."""
    from espnet2_lamer.recipe.downstream import train_heads

    train_heads(options, LID_TRACKS)


@ssl1.stage(
    12,
    "decoding and results",
    f"units baselines {_BENCHMARK} {_HEADS}",
    inputs=lambda o: [
        *files.heads(o, ASR_TRACKS),
        *files.heads(o, LID_TRACKS),
        *files.reports_used(o),
        *files.eval_sets(o),
    ],
    outputs=files.results,
    variant=lambda o: o.evaluation,
)
def results(options: Options) -> None:
    """Decode, score, and write the tables."""
    from espnet2_lamer.recipe.scoring import score

    score(options)


@ssl1.stage(
    13,
    "packing",
    "upstreams",
    inputs=lambda o: [
        o.checkpoints,
        *files.trained(o),
        *files.codebook(o),
        *files.results(o),
    ],
    outputs=files.published,
    variant=lambda o: o.variant,
)
def packing(options: Options) -> None:
    """Write zips for ``espnet_model_zoo`` and the adapter file."""
    from espnet2_lamer.recipe.packing import pack

    pack(options)


@ssl1.stage(
    14,
    "upload (off without --hf_repo)",
    "hf_repo dry_run",
    inputs=lambda o: files.published(o) if o.hf_repo or o.dry_run else [],
    variant=lambda o: o.variant,
    # A list that was shown once is asked for again.
    repeat=lambda o: o.dry_run,
)
def upload(options: Options) -> None:
    """Upload to Hugging Face what was packed."""
    from espnet2_lamer.recipe.packing import upload_packages

    files = packages(options) | adapter_files(options)
    front = options.ssl_experiment.name
    upload_packages(options.hf_repo, files, options.dry_run, front)


def _stages_of(options: Options) -> list[Stage]:
    """Return every stage; with ``--sanity true`` those up to the sanity check.

    Raises:
        RecipeError: A sanity check is asked for, but not the stage that it replaces.
    """
    if not options.sanity:
        return list(ssl1)
    number = ssl1["pretraining"].number
    if not options.stage <= number <= options.stop_stage:
        raise RecipeError(
            f"--sanity: found stages {options.stage} to {options.stop_stage}, expected "
            f"a range with stage {number}, which it replaces"
        )
    return ssl1.replaced(
        "pretraining",
        title="sanity check of pretraining",
        options=("allocation", "n_clusters", "seed"),
        outputs=lambda o: [o.ssl_experiment / "sanity.json"],
        run=sanity,
        name="sanity",
        keep=lambda o: [],
        variant=lambda o: f"{o.variant}_sanity",
    )


ssl1.stages_of = _stages_of
