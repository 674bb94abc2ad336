"""The stages of asr1: LoRA language experts on Whisper.

Heavy modules are imported inside the stages, so that a run in which every stage is done
ends in a second or two.
"""

from pathlib import Path

from espnet2_lamer.recipe.stage import Recipe
from espnet2_lamer.recipe.whisper.options import SPLITS, WhisperOptions, settle
from espnet2_lamer.recipe.whisper.systems import (
    expert_dir,
    needs_experts,
    packages,
    planned_systems,
    systems_of,
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
)

#: What training leaves in an experiment.
TRAINED = ("config.yaml", "model.pth", "training.json")
EXPERT_TRAINED = ("config.yaml", "expert.safetensors", "training.json")
_STUDENTS = ("kd_none", "kd_output", "kd_layerwise")
_LANGS = "langs prompts seed"


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


def _training_inputs(options: WhisperOptions, *kinds: str) -> list[Path]:
    """What training some kinds of systems from the experts reads."""
    if not systems_of(options, *kinds):
        return []
    made_of = _experts(options) if kinds[0] != "multilingual" else []
    sets = _sets(options, "train", "dev")
    return [*_weights(options), *_configs(options, *kinds), *sets, *made_of]


@asr1.stage(
    0,
    "Whisper weights",
    "whisper langs prompts",
    outputs=_weights,
)
def weights(options: WhisperOptions) -> None:
    """Find or fetch Whisper, and record which it is."""
    from espnet2_lamer.recipe.whisper.weights import prepare_weights

    prepare_weights(options)


@asr1.stage(
    1,
    "data preparation",
    "corpus corpus_paths manifest exclude_sources max_missing langs seed",
    inputs=lambda o: o.manifest_files,
    outputs=_corpus_sets,
)
def data(options: WhisperOptions) -> None:
    """Prepare corpora as ``local/data.py`` does, and join public ones."""
    from espnet2_lamer.recipe.data import prepare_corpus

    prepare_corpus(options)


@asr1.stage(
    2,
    "formatting and selection",
    "langs train_minutes dev_utts test_utts min_duration max_duration "
    "max_bad_audio seed",
    inputs=_selection_inputs,
    outputs=lambda o: [*_sets(o), o.raw / "whisper_sets.json"],
)
def selection(options: WhisperOptions) -> None:
    """Write 16 kHz audio and normalised texts of training, dev and test."""
    from espnet2_lamer.recipe.whisper.data import select

    select(options)


@asr1.stage(
    3,
    "language experts",
    f"systems {_LANGS}",
    inputs=lambda o: (
        [*_weights(o), o.expert_config, *_sets(o, "train", "dev")]
        if needs_experts(o)
        else []
    ),
    outputs=_experts,
)
def experts(options: WhisperOptions) -> None:
    """Train an expert per language."""
    from espnet2_lamer.recipe.whisper.training import train_experts

    train_experts(options)


@asr1.stage(
    4,
    "multilingual baselines",
    f"systems {_LANGS}",
    inputs=lambda o: _training_inputs(o, "multilingual", "full"),
    outputs=lambda o: _trained(o, "multilingual", "full"),
)
def baselines(options: WhisperOptions) -> None:
    """Train one LoRA for all languages, and the whole Whisper."""
    from espnet2_lamer.recipe.whisper.training import train_baselines

    train_baselines(options)


@asr1.stage(
    5,
    "mixture of language experts",
    f"systems {_LANGS} shared_layers",
    inputs=lambda o: _training_inputs(o, "mole"),
    outputs=lambda o: _trained(o, "mole"),
)
def mixtures(options: WhisperOptions) -> None:
    """Train mixtures of the experts."""
    from espnet2_lamer.recipe.whisper.training import train_mixtures

    train_mixtures(options)


@asr1.stage(
    6,
    "distilled students",
    f"systems {_LANGS} student_rank",
    inputs=lambda o: _training_inputs(o, *_STUDENTS),
    outputs=lambda o: _trained(o, *_STUDENTS),
)
def students(options: WhisperOptions) -> None:
    """Distil the experts into one LoRA."""
    from espnet2_lamer.recipe.whisper.training import train_students

    train_students(options)


@asr1.stage(
    7,
    "decoding",
    f"systems shared_layers student_rank {_LANGS}",
    inputs=lambda o: [*_weights(o), o.decode_config, *_sets(o, "test"), *_models(o)],
    outputs=_decoded,
)
def decoding(options: WhisperOptions) -> None:
    """Transcribe the test sets by every system."""
    from espnet2_lamer.recipe.whisper.transcripts import decode

    decode(options)


@asr1.stage(
    8,
    "scoring",
    "systems shared_layers student_rank langs seed",
    inputs=lambda o: [*_decoded(o), *_sets(o, "test")],
    outputs=lambda o: [o.expdir / "scores.json"],
)
def scoring(options: WhisperOptions) -> None:
    """Count errors."""
    from espnet2_lamer.recipe.whisper.scoring import score

    score(options)


@asr1.stage(
    9,
    "results tables",
    f"systems shared_layers student_rank {_LANGS} corpus",
    inputs=lambda o: [o.expdir / "scores.json", *_decoded(o), *_models(o)],
    outputs=_results,
)
def results(options: WhisperOptions) -> None:
    """Write the tables."""
    from espnet2_lamer.recipe.whisper.tables import tabulate

    tabulate(options)


@asr1.stage(
    10,
    "packing",
    f"pack shared_layers student_rank {_LANGS} corpus",
    inputs=lambda o: [*_weights(o), *_models(o), *_results(o)],
    outputs=lambda o: list(packages(o).values()),
)
def packing(options: WhisperOptions) -> None:
    """Write zips for ``espnet_model_zoo``."""
    from espnet2_lamer.recipe.whisper.packing import pack

    pack(options)


@asr1.stage(
    11,
    "upload (off without --hf_repo)",
    "hf_repo dry_run",
    inputs=lambda o: list(packages(o).values()) if o.hf_repo else [],
)
def upload(options: WhisperOptions) -> None:
    """Upload to Hugging Face what was packed."""
    from espnet2_lamer.recipe.packing import upload_packages

    files = {output.stem: output for output in packages(options).values()}
    upload_packages(options.hf_repo, files, options.dry_run)
