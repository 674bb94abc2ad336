"""Stages 3 to 6: experts, multilingual baselines, mixture, students."""

from pathlib import Path
from typing import Any

from espnet2_lamer.recipe.whisper.experiment import (
    MODEL,
    build,
    make_config,
    read_config,
    train,
)
from espnet2_lamer.recipe.whisper.options import WhisperOptions
from espnet2_lamer.recipe.whisper.systems import (
    System,
    expert_dir,
    needs_experts,
    systems_of,
)

EXPERT = "expert.safetensors"
#: The experts together, as one model that is told the language.
EXPERTS = "experts"
# What a system must have in common with the experts that it is made of.
_SHARED = ("rank", "alpha", "targets", "encoder", "decoder")


def train_experts(options: WhisperOptions) -> None:
    """Stage 3: one expert after the other, then the model that has them all."""
    from espnet2_lamer.export.whisper import export_expert

    if not needs_experts(options):
        return
    for lang in options.langs:
        experiment = expert_dir(options, lang)
        lora = {"method": "experts", "train_language": lang}
        settings = make_config(options, options.expert_config, [lang], lora)
        train(options, experiment, settings, [lang])
        export_expert(
            *(experiment / "config.yaml", experiment / MODEL, lang),
            experiment / EXPERT,
        )
    lora = {"method": "experts", "train_language": None, **_expert_lora(options)}
    together = {"experts": expert_files(options)}
    settings = make_config(options, None, options.langs, lora, together)
    build(options, options.expdir / EXPERTS, settings)


def train_baselines(options: WhisperOptions) -> None:
    """Stage 4: one LoRA for all languages, and all of Whisper."""
    for system in systems_of(options, "multilingual", "full"):
        lora = {"method": system.kind}
        settings = make_config(options, system.config, options.langs, lora)
        train(options, system.directory(options), settings, options.langs)


def train_mixtures(options: WhisperOptions) -> None:
    """Stage 5: combination weights and identifier of each depth asked for."""
    for system in systems_of(options, "mole"):
        lora = {"method": "mole", **_expert_lora(options)}
        if system.shared_layers is not None:
            lora["shared_layers"] = system.shared_layers
        _train_from_experts(options, system, lora, {})


def train_students(options: WhisperOptions) -> None:
    """Stage 6: the students; those that need most of the teachers come first.

    What a layer-wise student has stored of its teachers serves the other one.
    """
    for system in systems_of(options, "kd_layerwise", "kd_output", "kd_none")[::-1]:
        lora = {"method": "student", **_expert_lora(options)}
        if system.rank is not None:
            lora["student_rank"] = system.rank
        model = {"distillation": system.kind.removeprefix("kd_")}
        stored = (read_config(system.config).get("model_conf") or {}).get(
            "teacher_cache"
        )
        cache = str((options.expdir / "teacher_cache").absolute())
        model["teacher_cache"] = cache if stored else None
        _train_from_experts(options, system, lora, model)


def expert_files(options: WhisperOptions) -> dict[str, str]:
    """Return the experts' files by language."""
    return {
        lang: str((expert_dir(options, lang) / EXPERT).absolute())
        for lang in options.langs
    }


def _train_from_experts(
    options: WhisperOptions, system: System, lora: dict, model: dict
) -> None:
    files = expert_files(options)
    settings = make_config(
        options, system.config, options.langs, lora, {**model, "experts": files}
    )
    made_of = [Path(path) for path in files.values()]
    train(options, system.directory(options), settings, options.langs, made_of)


def _expert_lora(options: WhisperOptions) -> dict[str, Any]:
    stated = (read_config(options.expert_config).get("encoder_conf") or {}).get(
        "lora"
    ) or {}
    return {key: stated[key] for key in _SHARED if key in stated}
