"""Packages: model-zoo zips that need neither Whisper's file nor the experts'."""

import logging
import tempfile
from pathlib import Path

from espnet2_lamer.export.card import ASR_USE, Origin, model_card
from espnet2_lamer.export.zoo import pack_model, write_full_whisper
from espnet2_lamer.recipe.packing import corpus_terms
from espnet2_lamer.recipe.whisper.options import WhisperOptions
from espnet2_lamer.recipe.whisper.systems import System, packages
from espnet2_lamer.recipe.whisper.transcripts import model_files
from espnet2_lamer.recipe.whisper.weights import read_weights

_ABOUT = (
    "Whisper `{whisper}` with LoRA language experts, after "
    "[arXiv 2506.21555](https://arxiv.org/abs/2506.21555). This one: {what}; it takes "
    "up to 30 s"
)
_WHAT = {
    "multilingual": "one LoRA for all languages",
    "full": "all weights fine-tuned",
    "experts": "one LoRA per language, the language is given",
    "mole": "a mixture of one LoRA per language, which identifies the language",
    "kd_none": "one LoRA for all languages that needs no language",
    "kd_output": "one LoRA, distilled from the experts' outputs, needs no language",
    "kd_layerwise": "one LoRA, distilled from the experts' layers, needs no language",
}


def pack(options: WhisperOptions) -> None:
    """Write a self-contained zip for each system of ``--pack``."""
    weights = read_weights(options)
    results = options.expdir / "RESULTS.md"
    options.packed.mkdir(parents=True, exist_ok=True)
    for system, output in packages(options).items():
        # The whole Whisper once per package: nothing is kept beside the zip.
        with tempfile.TemporaryDirectory(dir=options.packed) as folder:
            config, model = write_full_whisper(
                *model_files(options, system), Path(folder)
            )
            pack_model(
                "asr",
                config,
                model,
                output,
                options=[results],
                card=_card(options, system, output, results, weights),
                metadata={
                    "whisper_sha256": weights["sha256"],
                    "prompts": options.prompts,
                },
            )
        logging.info("packed %s (%.1f MB)", output, output.stat().st_size / 1e6)


def _card(
    options: WhisperOptions, system: System, output: Path, results: Path, weights: dict
) -> str:
    given = system.kind in ("multilingual", "full", "experts")
    language = f'model.asr_model.language = "{options.langs[0]}"\n' if given else ""
    source = weights["source"]
    if "/" in source or source.endswith(".pt"):
        source = "(own weights)"  # a path would name a machine's folder
    notes, known, datasets = corpus_terms(options.corpus.split())
    notes = [f"Whisper: MIT, OpenAI; SHA-256 of its file {weights['sha256']}", *notes]
    return model_card(
        "asr",
        Origin(output.stem, options.langs, "mit" if known else "other", notes),
        results=results.read_text(encoding="utf-8"),
        datasets=datasets,
        about=_ABOUT.format(whisper=source, what=_WHAT[system.kind]),
        use=ASR_USE.format(name=output.stem, options="ctc_weight=0.0", more=language),
        tag="whisper",
    )
