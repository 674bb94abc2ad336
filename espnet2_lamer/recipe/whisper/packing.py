"""Packages: model-zoo zips that need neither Whisper's file nor the experts'."""

import tempfile
from pathlib import Path

from espnet2_lamer.export.card import ASR_USE, Origin, model_card
from espnet2_lamer.export.upload import repository_files, upload_files
from espnet2_lamer.export.zoo import pack_model, write_full_whisper
from espnet2_lamer.recipe.packing import corpus_terms, log_size
from espnet2_lamer.recipe.whisper.options import WhisperOptions
from espnet2_lamer.recipe.whisper.systems import packages
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
    source = weights["source"]
    if "/" in source or source.endswith(".pt"):
        source = "(own weights)"  # a path would name a machine's folder
    notes, known, datasets = corpus_terms(options.corpus.split())
    notes = [f"Whisper: MIT, OpenAI; SHA-256 of its file {weights['sha256']}", *notes]
    results = options.results / "RESULTS.md"
    options.packed.mkdir(parents=True, exist_ok=True)
    for system, output in packages(options).items():
        language = ""
        if system.kind in ("multilingual", "full", "experts"):
            language = f'model.asr_model.language = "{options.langs[0]}"\n'
        card = model_card(
            "asr",
            Origin(output.stem, options.langs, "mit" if known else "other", notes),
            results=results.read_text(encoding="utf-8"),
            datasets=datasets,
            about=_ABOUT.format(whisper=source, what=_WHAT[system.kind]),
            use=ASR_USE.format(
                name=output.stem, options="ctc_weight=0.0", more=language
            ),
            tag="whisper",
        )
        metadata = {"whisper_sha256": weights["sha256"], "prompts": options.prompts}
        # The whole Whisper once per package: nothing is kept beside the zip.
        with tempfile.TemporaryDirectory(dir=options.packed) as folder:
            files = write_full_whisper(*model_files(options, system), Path(folder))
            pack_model(
                "asr",
                *files,
                output,
                options=[results],
                card=card,
                metadata=metadata,
            )
        log_size("packed", output)


def upload(options: WhisperOptions) -> None:
    """Upload to Hugging Face what was packed."""
    files = {output.stem: output for output in packages(options).values()}
    upload_files(options.hf_repo, repository_files(files, ""), options.dry_run)
