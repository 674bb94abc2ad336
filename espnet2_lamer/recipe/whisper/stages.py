"""The table of stages of asr1: what each depends on, reads, writes and runs."""

from importlib import import_module
from pathlib import Path

from espnet2_lamer.recipe.runner import Stage
from espnet2_lamer.recipe.whisper.options import SPLITS, WhisperOptions
from espnet2_lamer.recipe.whisper.systems import (
    expert_dir,
    needs_experts,
    packages,
    planned_systems,
    systems_of,
)

# Heavy modules are imported inside the stages, so that a run in which every stage is
# done ends in a second or two.

#: What training leaves in an experiment.
TRAINED = ("config.yaml", "model.pth", "training.json")
EXPERT_TRAINED = ("config.yaml", "expert.safetensors", "training.json")
_STUDENTS = ("kd_none", "kd_output", "kd_layerwise")
_LANGS = ("langs", "prompts", "seed")


def _lazy(module: str, function: str):
    def call(options: WhisperOptions):
        found = import_module(f"espnet2_lamer.recipe.whisper.{module}")
        return getattr(found, function)(options)

    return call


def _prepare_corpus(options: WhisperOptions) -> None:
    from espnet2_lamer.recipe.data import prepare_corpus

    prepare_corpus(options)


def _upload(options: WhisperOptions) -> None:
    from espnet2_lamer.recipe.packing import upload_packages

    files = {output.stem: output for output in packages(options).values()}
    upload_packages(options.hf_repo, files, options.dry_run)


def _corpus_sets(options: WhisperOptions) -> list[Path]:
    return [
        options.datadir / f"train_{lang}" / name
        for lang in options.langs
        for name in ("wav.scp", "utt2lang")
    ]


def _selection_inputs(options: WhisperOptions) -> list[Path]:
    """Sets of stage 1; what else is missing, stage 2 says in the data's own terms."""
    tables = [
        options.datadir / f"{kind}{split}_{lang}" / name
        for lang in options.langs
        for split in SPLITS
        for kind in ("", "asr_")
        for name in ("wav.scp", "text", "utt2lang", "utt2spk", "romanisation")
    ]
    there = [path for path in tables if path.is_file()]
    return list(dict.fromkeys([*_corpus_sets(options), *there]))


def _sets(options: WhisperOptions, *splits: str) -> list[Path]:
    return [
        options.set_dir(lang, split) / name
        for lang in options.langs
        for split in splits or SPLITS
        for name in ("wav.scp", "text.raw", "text.target", "utt2num_samples")
    ]


def _weights(options: WhisperOptions) -> list[Path]:
    return [options.weights]


def _experts(options: WhisperOptions) -> list[Path]:
    """Return the experts, one after the other, and the model that has them all."""
    if not needs_experts(options):
        return []
    together = options.expdir / "experts" / "config.yaml"
    files = [
        expert_dir(options, lang) / name
        for lang in options.langs
        for name in EXPERT_TRAINED
    ]
    return [*files, together]


def _trained(options: WhisperOptions, *kinds: str) -> list[Path]:
    return [
        system.directory(options) / name
        for system in systems_of(options, *kinds)
        for name in TRAINED
    ]


def _configs(options: WhisperOptions, *kinds: str) -> list[Path]:
    found = [system.config for system in systems_of(options, *kinds)]
    return list(dict.fromkeys(path for path in found if path is not None))


def _models(options: WhisperOptions) -> list[Path]:
    """Everything that was trained."""
    kinds = ("multilingual", "full", "mole", *_STUDENTS)
    return [*_experts(options), *_trained(options, *kinds)]


def _decoded(options: WhisperOptions) -> list[Path]:
    return [
        options.expdir / "decode" / run / lang / "text"
        for system in planned_systems(options)
        for run in system.runs()
        for lang in options.langs
    ]


def _results(options: WhisperOptions) -> list[Path]:
    return [options.expdir / n for n in ("RESULTS.md", "results.json", "results.csv")]


def _train_stage(
    number: int, title: str, kinds: tuple[str, ...], run: str, *options: str
) -> Stage:
    """Make the stage that trains some kinds of systems from the experts."""

    def inputs(o: WhisperOptions) -> list[Path]:
        if not systems_of(o, *kinds):
            return []
        made_of = _experts(o) if kinds[0] != "multilingual" else []
        sets = _sets(o, "train", "dev")
        return [*_weights(o), *_configs(o, *kinds), *sets, *made_of]

    return Stage(
        number,
        title,
        ("systems", *_LANGS, *options),
        inputs,
        lambda o: _trained(o, *kinds),
        _lazy("training", run),
    )


STAGES = [
    Stage(
        0,
        "Whisper weights",
        ("whisper", "langs", "prompts"),
        lambda o: [],
        _weights,
        _lazy("weights", "prepare_weights"),
    ),
    Stage(
        1,
        "data preparation",
        (
            *("corpus", "corpus_paths", "manifest", "exclude_sources", "max_missing"),
            *("langs", "seed"),
        ),
        lambda o: o.manifest_files,
        _corpus_sets,
        _prepare_corpus,
    ),
    Stage(
        2,
        "formatting and selection",
        (
            *("langs", "train_minutes", "dev_utts", "test_utts", "min_duration"),
            *("max_duration", "max_bad_audio", "seed"),
        ),
        _selection_inputs,
        lambda o: [*_sets(o), o.raw / "whisper_sets.json"],
        _lazy("data", "select"),
    ),
    Stage(
        3,
        "language experts",
        ("systems", *_LANGS),
        lambda o: (
            [*_weights(o), o.expert_config, *_sets(o, "train", "dev")]
            if needs_experts(o)
            else []
        ),
        _experts,
        _lazy("training", "train_experts"),
    ),
    _train_stage(
        4, "multilingual baselines", ("multilingual", "full"), "train_baselines"
    ),
    _train_stage(
        5, "mixture of language experts", ("mole",), "train_mixtures", "shared_layers"
    ),
    _train_stage(6, "distilled students", _STUDENTS, "train_students", "student_rank"),
    Stage(
        7,
        "decoding",
        ("systems", "shared_layers", "student_rank", *_LANGS),
        lambda o: [
            *(*_weights(o), o.decode_config, *_sets(o, "test"), *_models(o)),
        ],
        _decoded,
        _lazy("transcripts", "decode"),
    ),
    Stage(
        8,
        "scoring",
        ("systems", "shared_layers", "student_rank", "langs", "seed"),
        lambda o: [*_decoded(o), *_sets(o, "test")],
        lambda o: [o.expdir / "scores.json"],
        _lazy("scoring", "score"),
    ),
    Stage(
        9,
        "results tables",
        ("systems", "shared_layers", "student_rank", *_LANGS, "corpus"),
        lambda o: [o.expdir / "scores.json", *_decoded(o), *_models(o)],
        _results,
        _lazy("tables", "tabulate"),
    ),
    Stage(
        10,
        "packing",
        ("pack", "shared_layers", "student_rank", *_LANGS, "corpus"),
        lambda o: [*_weights(o), *_models(o), *_results(o)],
        lambda o: list(packages(o).values()),
        _lazy("packing", "pack"),
    ),
    Stage(
        11,
        "upload",
        ("hf_repo", "dry_run"),
        lambda o: list(packages(o).values()) if o.hf_repo else [],
        lambda o: [],
        _upload,
    ),
]
