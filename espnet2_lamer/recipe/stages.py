"""The stages of ssl1: Lamer-SSL and its siblings on HuBERT."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from espnet2_lamer.recipe import files
from espnet2_lamer.recipe.benchmark import ASR_TRACKS, LID_TRACKS
from espnet2_lamer.recipe.declaration import refused
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.settle import settle
from espnet2_lamer.recipe.stage import (
    Command,
    Recipe,
    Stage,
    command,
    corpus_sets,
    left_out,
    manifest_files,
    manifest_folders,
    results,
    wav_scps,
    work,
)
from espnet2_lamer.recipe.upstreams import mini_sums, teacher_path

# What decides which speech there is.
_CORPUS = (
    "corpus corpus_paths manifest segmentation exclude_sources new_langs replay_langs"
)
# What decides which heads there are.
_BENCHMARK = (
    "benchmark budgets tracks eval_langs eval_corpora cross_corpus lid_reading "
    "multi_unit nbpe"
)
# What multiplies them.
_HEADS = "upstreams upstream_mode seed eval_seeds learning_rates"
# What makes recognisers of them.
_RECOGNISERS = (
    "tune finetune_config use_ngram ngram_num use_lm lm_config lm_train_text "
    "inference_config"
)


def _workers(options: Options) -> dict:
    """Where the commands of units run."""
    return {"dask": options.dask, "device": "cuda" if options.ngpu else "cpu"}


def _teacher(options: Options) -> dict:
    # Two processes keep a GPU busy, more would only take its memory.
    few, most = options.ngpu, 2 * options.ngpu
    return {
        "teacher": teacher_path(options),
        "layer": options.recluster or options.teacher_layer,
        "trust_s3prl_files": options.trust_s3prl_files,
        "nj": max(few, min(options.nj, most)) if options.ngpu else options.nj,
        "gpus": options.ngpu if options.ngpu > 1 else None,
        **_workers(options),
    }


def features(options: Options) -> list[Command]:
    """Store features of sampled hours per language."""
    train = options.ssl_train
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


def labels(options: Options) -> list[Command]:
    """Label every utterance with units, measure them, write the token list."""
    dev = options.ssl_dev
    assigned = [
        command(
            "assign_units",
            **_teacher(options),
            codebook=options.codebook,
            n_clusters=options.n_clusters,
            wav_scp=directory / "wav.scp",
            output=directory / "text.km",
            token_list=options.units_dir / "tokens.txt",
            # Stage 3 draws from the training set.
            features=None if directory == dev else options.features,
        )
        for directory in (options.ssl_train, dev)
    ]
    quality = command(
        "label_quality",
        labels=dev / "text.km",
        n_clusters=options.n_clusters,
        data_dir=dev,
        output=options.label_quality,
    )
    return [*assigned, quality]


STAGES = (
    Stage(
        0,
        "checkpoints",
        "base and teacher checkpoints",
        "base teacher retrain seed",
        work("base_training", "prepare_checkpoints"),
        inputs=mini_sums,
        outputs=lambda o: [o.checkpoints, o.random_upstream / "model.safetensors"],
        keep=lambda o: [o.expdir / "stage0", o.dumpdir / "stage0"] if o.retrain else [],
        checks="allocation asr_layer lid_layer recluster",
        shared=True,
    ),
    Stage(
        1,
        "data",
        "data preparation",
        f"{_CORPUS} seed",
        work("data", "prepare_speech"),
        inputs=manifest_files,
        outputs=corpus_sets,
        audio=manifest_folders,
        audio_after=left_out,
        shared=True,
    ),
    Stage(
        2,
        "selection",
        "formatting and selection",
        "new_langs replay_langs replay_hours replay_sampling replay_alpha "
        "replay_clusters dev_hours min_duration max_duration max_bad_audio "
        "drop_overlap overlap_tree seed",
        work("data", "format_ssl"),
        inputs=files.selection_inputs,
        outputs=lambda o: [
            *files.ssl_sets(o),
            *(o.raw / n for n in ("hours.json", "overlap.tsv", "skipped_audio.tsv")),
        ],
        audio=lambda o: wav_scps(files.selection_inputs(o)),
        audio_after=files.ssl_audio,
        shared=True,
    ),
    Stage(
        3,
        "features",
        "teacher features",
        "teacher_layer kmeans_hours seed",
        features,
        inputs=lambda o: [o.checkpoints, *files.ssl_sets(o)[:3]],
        outputs=lambda o: [o.features / "index.json"],
        audio=lambda o: files.ssl_audio(o)[:1],
        shared=True,
        by_commands=True,
    ),
    Stage(
        4,
        "clusters",
        "k-means",
        "n_clusters seed",
        clusters,
        inputs=lambda o: [o.features / "index.json"],
        outputs=lambda o: [o.codebook],
        shared=True,
        by_commands=True,
    ),
    Stage(
        5,
        "labels",
        "pseudo-labels",
        "teacher_layer n_clusters",
        labels,
        inputs=lambda o: [o.checkpoints, o.codebook, *files.ssl_sets(o)],
        outputs=lambda o: [*files.labels(o), o.label_quality],
        audio=files.ssl_audio,
        shared=True,
        by_commands=True,
    ),
    Stage(
        6,
        "statistics",
        "statistics",
        "",
        work("pretraining", "write_all_shapes"),
        inputs=lambda o: [*files.ssl_sets(o), *files.labels(o)],
        outputs=files.shapes,
        shared=True,
    ),
    Stage(
        7,
        "pretraining",
        "continual pretraining",
        "ssl_config allocation n_clusters passes control seed",
        work("pretraining", "pretrain"),
        inputs=lambda o: [
            o.checkpoints,
            o.ssl_config,
            *files.labels(o),
            *files.shapes(o),
        ],
        outputs=files.trained,
        audio=files.ssl_audio,
        keep=lambda o: o.trainings,
        variant=lambda o: o.variant,
    ),
    Stage(
        8,
        "analysis",
        "analysis",
        "asr_layer analysed spread seed",
        work("analysis", "analyse"),
        inputs=lambda o: [
            o.checkpoints,
            *files.trained(o),
            *files.labels(o),
            *files.spread(o),
        ],
        outputs=files.reports,
        audio=files.ssl_audio,
        variant=lambda o: o.variant,
    ),
    Stage(
        9,
        "evaluation_sets",
        "ML-SUPERB data",
        "new_langs replay_langs units max_bad_audio seed "
        f"{_BENCHMARK} mlsuperb eval_lists text_norm",
        work("data", "format_evaluation"),
        inputs=files.set_sources,
        added=files.own_texts,
        outputs=files.eval_sets,
        audio=files.evaluation_sources,
        audio_after=lambda o: wav_scps(files.eval_sets(o)),
        shared=True,
    ),
    Stage(
        10,
        "asr_heads",
        "ASR fine-tuning",
        "asr_config multi_config units asr_layer store_dtype "
        f"{_BENCHMARK} {_HEADS} {_RECOGNISERS}",
        work("scoring", "train_heads", ASR_TRACKS),
        inputs=lambda o: files.of_heads(o, ASR_TRACKS),
        outputs=lambda o: files.heads(o, ASR_TRACKS),
        audio=lambda o: wav_scps(files.eval_sets(o)),
        variant=lambda o: o.evaluation,
        together=True,
    ),
    Stage(
        11,
        "lid_heads",
        "LID fine-tuning",
        f"lid_config multi_config lid_layer store_dtype {_BENCHMARK} {_HEADS}",
        work("scoring", "train_heads", LID_TRACKS),
        inputs=lambda o: files.of_heads(o, LID_TRACKS),
        outputs=lambda o: files.heads(o, LID_TRACKS),
        audio=lambda o: wav_scps(files.eval_sets(o)),
        variant=lambda o: o.evaluation,
        together=True,
    ),
    Stage(
        12,
        "results",
        "decoding and results",
        f"units baselines spread {_BENCHMARK} {_HEADS} {_RECOGNISERS}",
        work("scoring", "score"),
        inputs=lambda o: [
            *files.heads(o),
            *(files.reports(o) if "lamer" in o.upstreams else []),
            *files.eval_sets(o),
            *files.spread(o),
        ],
        outputs=results,
        audio=lambda o: wav_scps(files.eval_sets(o)),
        variant=lambda o: o.evaluation,
    ),
    Stage(
        13,
        "packing",
        "packing",
        "upstreams tune upstream_mode use_ngram use_lm",
        work("packing", "pack"),
        inputs=lambda o: [
            o.checkpoints,
            o.codebook,
            *files.trained(o),
            *results(o),
        ],
        outputs=files.published,
        variant=lambda o: o.variant,
    ),
    Stage(
        14,
        "upload",
        "upload (off without --hf_repo)",
        "hf_repo dry_run",
        work("packing", "upload"),
        inputs=lambda o: files.published(o) if o.hf_repo or o.dry_run else [],
        variant=lambda o: o.variant,
        # A list that was shown once is asked for again.
        repeat=lambda o: o.dry_run,
    ),
)


def _in_first_round(stage: Stage) -> Stage:
    """Return a stage as it is without ``--recluster``, with the record that it has."""
    functions = "run inputs added outputs audio audio_after keep variant repeat".split()
    of_first = {name: _of_first_round(getattr(stage, name)) for name in functions}
    return replace(stage, **of_first)


def _of_first_round(function: Callable[[Options], Any]) -> Callable[[Options], Any]:
    return lambda options: function(options.first_round)


def _with_second_round(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Return the stages where stage 7 has a second part: new units, and on with them.

    Stages 3 to 6 and the first part of stage 7 are those of a run without it.
    """
    training = ssl1["pretraining"]
    first = [s for s in stages if s.number <= training.number]
    first = [_in_first_round(s) if s.number > 2 else s for s in first]
    second = replace(
        training,
        name="reclustering",
        title="re-clustering, pretraining goes on",
        depends_on=f"{training.depends_on} recluster kmeans_hours",
        run=work("reclustering", "go_on_with_new_units"),
        inputs=lambda o: [
            o.checkpoints,
            o.ssl_config,
            *files.ssl_sets(o),
            *files.trained(o.first_round)[-2:],
        ],
        outputs=lambda o: [*files.trained(o), *files.labels(o), o.label_quality],
        keep=lambda o: [*o.trainings, o.round_dir],
    )
    return (*first, second, *stages[training.number + 1 :])


def _stages_of(options: Options) -> tuple[Stage, ...]:
    """Return every stage; with ``--sanity true`` those up to the sanity check."""
    stages = STAGES
    if options.retrains_on_corpus:
        # Stage 0 listens to the corpus, too.
        first = STAGES[0]
        limits = (
            "min_duration max_duration max_bad_audio dev_hours drop_overlap "
            "overlap_tree"
        )
        first = replace(
            first,
            depends_on=f"{first.depends_on} {_CORPUS} {limits}",
            inputs=lambda o: [*mini_sums(o), *manifest_files(o)],
            audio=manifest_folders,
        )
        stages = (first, *STAGES[1:])
    if options.recluster:
        return _with_second_round(stages)
    if not options.sanity:
        return stages
    training = ssl1["pretraining"]
    number = training.number
    if not options.stage <= number <= options.stop_stage:
        found = f"stages {options.stage} to {options.stop_stage}"
        expected = f"a range with stage {number}, which it replaces"
        raise refused("sanity", found, expected)
    check = replace(
        training,
        name="sanity",
        title="sanity check of pretraining",
        depends_on="allocation n_clusters seed",
        run=work("pretraining", "check_one_batch"),
        outputs=lambda o: [o.ssl_experiment / "sanity.json"],
        keep=lambda o: [],
        variant=lambda o: f"{o.variant}_sanity",
    )
    return (*(stage for stage in stages if stage.number < number), check)


ssl1 = Recipe(
    "ssl1",
    "Lamer-SSL: extend a HuBERT to new languages with layer-aware LoRA experts. "
    "Without options: the mini preset, from data to packed models, on a CPU. A stage "
    "whose inputs and options did not change is skipped; one that was killed goes on.",
    Options,
    Path("conf/presets"),
    settle,
    STAGES,
    _stages_of,
)
