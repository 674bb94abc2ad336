"""Stages 13 and 14: what is published, and its upload when it is asked for."""

import logging
from collections.abc import Mapping
from pathlib import Path

from espnet2_lamer.convert.espnet_experiment import model_file, read_config
from espnet2_lamer.convert.load import public_name
from espnet2_lamer.convert.state import read_state
from espnet2_lamer.evaluation.tokens import BPE_MODEL
from espnet2_lamer.export.adapter import write_adapter
from espnet2_lamer.export.card import model_card
from espnet2_lamer.export.upload import repository_files, upload_files
from espnet2_lamer.export.zoo import pack_model, write_full_model
from espnet2_lamer.recipe.benchmark import adapter_files, packages, planned_runs
from espnet2_lamer.recipe.checkpoints import base_path, read_checkpoints
from espnet2_lamer.recipe.licences import licence_terms
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.packed_check import check_package
from espnet2_lamer.recipe.scoring import DECODE_CONFIG
from espnet2_lamer.units.codebook import load_codebook


def _terms(options: Options) -> tuple[str, list[str], list[str]]:
    sources = {name: c["source"] for name, c in read_checkpoints(options).items()}
    corpora = options.corpus.split()
    return licence_terms(sources["base"], sources["teacher"], corpora)


def _card(options: Options, kind: str, name: str, results: str) -> str:
    licence, notes, datasets = _terms(options)
    return model_card(
        kind,
        name,
        languages=options.langs,
        licence=licence,
        notes=notes,
        results=results,
        datasets=datasets,
    )


def pack(options: Options) -> None:
    """Stage 13: zips for ``espnet_model_zoo`` and the adapter file.

    Raises:
        RecipeError: A package does not decode what its model decodes.
    """
    results_file = options.results / "RESULTS.md"
    results = results_file.read_text(encoding="utf-8")
    metadata = {"codebook_sha256": load_codebook(options.codebook).sha256}
    runs = {run.name: run for run in planned_runs(options)}
    for name, output in packages(options).items():
        extra = [results_file]
        if name == options.ssl_experiment.name:
            kind = "ssl"
            experiment = options.ssl_experiment
            config_file, weights = write_full_model(
                experiment / "config.yaml",
                model_file(experiment, read_config(experiment)),
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
        if name in runs:
            check_package(
                *(runs[name], output, options.expdir, options.raw, DECODE_CONFIG),
                device="cuda" if options.ngpu else "cpu",
            )
    for output in adapter_files(options).values():
        _write_adapter(options, output)


def _write_adapter(options: Options, output: Path) -> None:
    licence, notes, _ = _terms(options)
    experiment = options.ssl_experiment
    config = read_config(experiment)
    write_adapter(
        config,
        read_state(model_file(experiment, config)),
        output,
        source=experiment,
        base=base_path(options),
        base_name=public_name(read_checkpoints(options)["base"]["source"]),
        codebook=options.codebook,
        metadata={
            "name": experiment.name,
            "languages": options.langs,
            "license": licence,
            "notes": notes,
        },
    )
    logging.info("wrote %s (%.1f MB)", output, output.stat().st_size / 1e6)


def upload(options: Options) -> None:
    """Stage 14: upload what stage 13 made to Hugging Face; off without ``--hf_repo``.

    The pretrained model's files lie at the top of the repository, everything else
    beside them. With ``--dry_run true`` they are only listed.

    Raises:
        RecipeError: No token, or the upload failed.
    """
    upload_packages(
        options.hf_repo,
        packages(options) | adapter_files(options),
        options.dry_run,
        options.ssl_experiment.name,
    )


def upload_packages(
    hf_repo: str, files: Mapping[str, Path], dry_run: bool = False, front: str = ""
) -> None:
    """Upload packages by the model's name; nothing where ``hf_repo`` is empty.

    Args:
        hf_repo: ``user/name``.
        files: Zips, adapter files and directories.
        dry_run: Only say what would be uploaded.
        front: The package whose files lie at the top of the repository.

    Raises:
        RecipeError: No token, or the upload failed.
    """
    upload_files(hf_repo, repository_files(files, front), dry_run)
