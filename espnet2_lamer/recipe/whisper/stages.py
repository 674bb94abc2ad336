"""The stages of asr1: LoRA language experts on Whisper."""

from pathlib import Path

from espnet2_lamer.recipe.stage import (
    Recipe,
    Stage,
    below,
    corpus_sets,
    left_out,
    manifest_files,
    manifest_folders,
    results,
    wav_scps,
    with_those_there,
    work,
)
from espnet2_lamer.recipe.whisper.options import (
    SPLITS,
    STUDENTS,
    WhisperOptions,
    settle,
)
from espnet2_lamer.recipe.whisper.systems import (
    EXPERTS,
    needs_experts,
    packages,
    planned_systems,
    systems_of,
)

#: What training leaves in an experiment.
TRAINED = ("config.yaml", "model.pth", "training.json")
EXPERT_TRAINED = ("config.yaml", "expert.safetensors", "training.json")
_LANGS = "langs prompts seed"


def _selection_inputs(options: WhisperOptions) -> list[Path]:
    """Sets of stage 1; what else is missing, stage 2 says in the data's own terms."""
    sets = [
        f"{kind}{split}_{lang}"
        for lang in options.langs
        for split in SPLITS
        for kind in ("", "asr_")
    ]
    names = ("wav.scp", "text", "utt2lang", "utt2spk", "romanisation")
    return with_those_there(corpus_sets(options), below(options.datadir, sets, names))


def _sets(options: WhisperOptions, *splits: str) -> list[Path]:
    return [
        options.set_dir(lang, split) / name
        for lang in options.langs
        for split in splits or SPLITS
        for name in ("wav.scp", "text.raw", "text.target", "utt2num_samples")
    ]


def _experts(options: WhisperOptions) -> list[Path]:
    """Return the experts, one after the other, and the model that has them all."""
    if not needs_experts(options):
        return []
    folder = options.expdir / EXPERTS
    return [*below(folder, options.langs, EXPERT_TRAINED), folder / "config.yaml"]


def _trained(options: WhisperOptions, *kinds: str) -> list[Path]:
    names = [system.name for system in systems_of(options, *kinds)]
    return below(options.expdir, names, TRAINED)


def _models(options: WhisperOptions) -> list[Path]:
    """Everything that was trained."""
    kinds = ("multilingual", "full", "mole", *STUDENTS)
    return [*_experts(options), *_trained(options, *kinds)]


def _decoded(options: WhisperOptions) -> list[Path]:
    runs = [run for system in planned_systems(options) for run in system.runs()]
    names = [f"{lang}/text" for lang in options.langs]
    return below(options.expdir / "decode", runs, names)


def _training_inputs(options: WhisperOptions, *kinds: str) -> list[Path]:
    """What training some kinds of systems from the experts reads."""
    systems = systems_of(options, *kinds)
    if not systems:
        return []
    configs = dict.fromkeys(system.config for system in systems)
    made_of = _experts(options) if "multilingual" not in kinds else []
    return [options.weights, *configs, *_sets(options, "train", "dev"), *made_of]


STAGES = (
    Stage(
        0,
        "weights",
        "Whisper weights",
        "whisper langs prompts",
        work("whisper.weights", "prepare_weights"),
        outputs=lambda o: [o.weights],
        shared=True,
    ),
    Stage(
        1,
        "data",
        "data preparation",
        "corpus corpus_paths manifest segmentation exclude_sources max_missing langs "
        "seed",
        work("data", "prepare_corpus"),
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
        "langs train_minutes dev_utts test_utts min_duration max_duration "
        "max_bad_audio seed",
        work("whisper.data", "select"),
        inputs=_selection_inputs,
        outputs=lambda o: [*_sets(o), o.raw / "whisper_sets.json"],
        audio=lambda o: wav_scps(_selection_inputs(o)),
        audio_after=lambda o: wav_scps(_sets(o)),
        shared=True,
    ),
    Stage(
        3,
        "experts",
        "language experts",
        f"expert_config systems {_LANGS}",
        work("whisper.training", "train_experts"),
        inputs=lambda o: (
            [o.weights, o.expert_config, *_sets(o, "train", "dev")]
            if needs_experts(o)
            else []
        ),
        outputs=_experts,
        audio=lambda o: wav_scps(_sets(o, "train", "dev") if needs_experts(o) else []),
    ),
    Stage(
        4,
        "baselines",
        "multilingual baselines",
        f"multilingual_config full_config systems {_LANGS}",
        work("whisper.training", "train_systems", "multilingual", "full"),
        inputs=lambda o: _training_inputs(o, "multilingual", "full"),
        outputs=lambda o: _trained(o, "multilingual", "full"),
        audio=lambda o: wav_scps(_training_inputs(o, "multilingual", "full")),
    ),
    Stage(
        5,
        "mixtures",
        "mixture of language experts",
        f"mole_config systems {_LANGS} shared_layers",
        work("whisper.training", "train_systems", "mole"),
        inputs=lambda o: _training_inputs(o, "mole"),
        outputs=lambda o: _trained(o, "mole"),
        audio=lambda o: wav_scps(_training_inputs(o, "mole")),
    ),
    Stage(
        6,
        "students",
        "distilled students",
        f"kd_config systems {_LANGS} student_rank",
        work("whisper.training", "train_systems", *STUDENTS),
        inputs=lambda o: _training_inputs(o, *STUDENTS),
        outputs=lambda o: _trained(o, *STUDENTS),
        audio=lambda o: wav_scps(_training_inputs(o, *STUDENTS)),
    ),
    Stage(
        7,
        "decoding",
        "decoding",
        f"decode_config systems shared_layers student_rank {_LANGS}",
        work("whisper.transcripts", "decode"),
        inputs=lambda o: [o.weights, o.decode_config, *_sets(o, "test"), *_models(o)],
        outputs=_decoded,
        audio=lambda o: wav_scps(_sets(o, "test")),
    ),
    Stage(
        8,
        "scoring",
        "scoring",
        "systems shared_layers student_rank langs seed",
        work("whisper.scoring", "score"),
        inputs=lambda o: [*_decoded(o), *_sets(o, "test")],
        outputs=lambda o: [o.expdir / "scores.json"],
    ),
    Stage(
        9,
        "results",
        "results tables",
        f"systems shared_layers student_rank {_LANGS} corpus",
        work("whisper.scoring", "tabulate"),
        inputs=lambda o: [o.expdir / "scores.json", *_decoded(o), *_models(o)],
        outputs=results,
    ),
    Stage(
        10,
        "packing",
        "packing",
        f"pack shared_layers student_rank {_LANGS} corpus",
        work("whisper.packing", "pack"),
        inputs=lambda o: [o.weights, *_models(o), *results(o)],
        outputs=lambda o: [*packages(o).values()],
    ),
    Stage(
        11,
        "upload",
        "upload (off without --hf_repo)",
        "hf_repo dry_run",
        work("whisper.packing", "upload"),
        inputs=lambda o: [*packages(o).values()] if o.hf_repo else [],
    ),
)

asr1 = Recipe(
    "asr1",
    "LoRA language experts on a frozen Whisper: mixture of experts, distilled student, "
    "baselines. Without options: the mini preset, from weights to packed models, on a "
    "CPU. A stage whose inputs and options did not change is skipped; one that was "
    "killed goes on.",
    WhisperOptions,
    Path("conf/presets/whisper"),
    settle,
    STAGES,
    lambda options: STAGES,
)
