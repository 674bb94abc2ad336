"""Stages 13 and 14: model-zoo zips, and their upload when it is asked for."""

import logging

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.tokens import BPE_MODEL
from espnet2_lamer.export.card import model_card
from espnet2_lamer.export.full import write_full_model
from espnet2_lamer.export.zoo import pack_model
from espnet2_lamer.recipe.benchmark import packages
from espnet2_lamer.recipe.checkpoints import read_checkpoints
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.units.codebook import load_codebook
from espnet2_lamer.upstream import model_file

# Terms that a teacher's licence puts on what is trained with it.
TEACHER_LICENCES = {"utter-project/mHuBERT-147": "cc-by-nc-sa-4.0"}


def _card(options: Options, kind: str, name: str, results: str) -> str:
    teacher = read_checkpoints(options)["teacher"]["source"]
    licence = TEACHER_LICENCES.get(teacher.rstrip("/"), "apache-2.0")
    notes = [f"base: {options.base}", f"teacher of the units: {teacher}"]
    if options.corpus == "mini":
        notes.append(
            "trained on speech synthesised by espeak-ng; sentences: "
            "hsk-sentences-audio (CC-BY-SA-4.0) and pycantonese's Common Voice "
            "prompts (MPL-2.0)"
        )
    else:
        notes.append("the licences of your training data apply; state them here")
    return model_card(
        kind,
        name,
        languages=options.langs,
        licence=licence,
        notes=notes,
        results=results,
    )


def pack(options: Options) -> None:
    """Stage 13: self-contained zips for ``espnet_model_zoo``."""
    import yaml

    results_file = options.results / "RESULTS.md"
    results = results_file.read_text(encoding="utf-8")
    metadata = {"codebook_sha256": load_codebook(options.codebook).sha256}
    for name, output in packages(options).items():
        extra = [results_file]
        if name == options.ssl_experiment.name:
            config_file = options.ssl_experiment / "config.yaml"
            config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
            kind = "ssl"
            config_file, weights = write_full_model(
                config_file,
                model_file(options.ssl_experiment, config),
                options.expdir / "packed" / name,
            )
        else:
            kind = "asr"
            config_file = options.expdir / name / "final" / "config.yaml"
            weights = options.expdir / name / "final" / "model.pth"
            pieces = options.expdir / name / "final" / BPE_MODEL
            extra += [pieces] if pieces.is_file() else []
        pack_model(
            kind,
            config_file,
            weights,
            output,
            options=extra,
            card=_card(options, kind, name, results),
            metadata=metadata,
        )
        logging.info("packed %s (%.1f MB)", output, output.stat().st_size / 1e6)


def upload(options: Options) -> None:
    """Stage 14: upload the packages to Hugging Face; off without ``--hf_repo``.

    Raises:
        RecipeError: The upload failed.
    """
    if not options.hf_repo:
        logging.info("no --hf_repo: nothing is uploaded")
        return
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(options.hf_repo, exist_ok=True)
        for name, path in packages(options).items():
            api.upload_file(
                path_or_fileobj=path, path_in_repo=path.name, repo_id=options.hf_repo
            )
            logging.info("uploaded %s to %s", name, options.hf_repo)
    except Exception as error:
        raise RecipeError(
            f"--hf_repo {options.hf_repo}: upload failed ({error}); set HF_TOKEN to a "
            "token that may write there"
        ) from error
