"""Stages 13 and 14: what is published, and its upload when it is asked for."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from espnet2_lamer.convert.load import public_name
from espnet2_lamer.convert.packed import unpack_model
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.feature_store import count_samples
from espnet2_lamer.evaluation.head_decoding import decode_utterances
from espnet2_lamer.evaluation.runs import Run
from espnet2_lamer.evaluation.tokens import BPE_MODEL
from espnet2_lamer.export.adapter import write_adapter
from espnet2_lamer.export.card import Origin, model_card
from espnet2_lamer.export.upload import repository_files, upload_files
from espnet2_lamer.export.zoo import pack_model, write_full_model
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.recipe.benchmark import adapter_files, packages, planned_runs
from espnet2_lamer.recipe.checkpoints import base_path, read_checkpoints
from espnet2_lamer.recipe.options import Options
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
        Origin(name, options.langs, licence, notes),
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
            config_file, weights = write_full_model(
                options.ssl_experiment, options.expdir / "packed" / name
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
                runs[name],
                output,
                options.expdir,
                options.raw,
                DECODE_CONFIG,
                device="cuda" if options.ngpu else "cpu",
            )
    for output in adapter_files(options).values():
        _write_adapter(options, output)


def _write_adapter(options: Options, output: Path) -> None:
    licence, notes, _ = _terms(options)
    experiment = options.ssl_experiment
    write_adapter(
        experiment,
        output,
        Origin(experiment.name, options.langs, licence, notes),
        base=base_path(options),
        base_name=public_name(read_checkpoints(options)["base"]["source"]),
        codebook=options.codebook,
    )
    logging.info("wrote %s (%.1f MB)", output, output.stat().st_size / 1e6)


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


APACHE = "apache-2.0"
# Of weights, as their pages on Hugging Face state them.
WEIGHTS = {
    "utter-project/mHuBERT-147": "cc-by-nc-sa-4.0",
    "facebook/hubert-base-ls960": APACHE,
    "facebook/hubert-large-ll60k": APACHE,
    "facebook/hubert-xlarge-ll60k": APACHE,
    # The recipe's own.
    "mini/base": APACHE,
    "mini/teacher": APACHE,
}
# Of speech: name, licence, id among Hugging Face's data sets if it has one.
CORPORA = {
    "mini": (
        "speech synthesised by espeak-ng; sentences of hsk-sentences-audio and of "
        "pycantonese's Common Voice prompts",
        "CC-BY-SA-4.0 and MPL-2.0 (Spanish, if any: names of CLDR, Unicode-3.0)",
        None,
    ),
    "commonvoice": (
        "Common Voice 11.0",
        "CC0-1.0",
        "mozilla-foundation/common_voice_11_0",
    ),
    "thchs30": ("THCHS-30", "Apache-2.0", None),
    "aishell1": ("AISHELL-1", "Apache-2.0", None),
    "aishell3": ("AISHELL-3", "Apache-2.0", None),
    "fleurs": ("FLEURS (heads and evaluation only)", "CC-BY-4.0", "google/fleurs"),
}
UNKNOWN = "not known to this recipe: state it here before you publish"


def licence_terms(
    base: str, teacher: str, corpora: Sequence[str]
) -> tuple[str, list[str], list[str]]:
    """Return the licence of a model, and where it comes from.

    Args:
        base: Source of the base, as it was given.
        teacher: Source of the teacher of the units.
        corpora: Values of ``--corpus``.

    Returns:
        Hugging Face id of the licence (the teacher's where that binds more than
        Apache's, ``other`` where a licence is not known), lines for the card, and ids
        of data sets.
    """
    found, notes = [], []
    for role, source in (("base", base), ("teacher of the units", teacher)):
        name = public_name(source.rstrip("/"))
        licence = WEIGHTS.get(name)
        found.append(licence)
        notes.append(f"{role}: {name}, licence {licence or UNKNOWN}")
    of_data, known, ids = corpus_terms(corpora)
    notes += of_data
    found.append(APACHE if known else None)
    binding = [licence for licence in found if licence not in (APACHE, None)]
    if binding:
        licence = binding[0]
    else:
        licence = "other" if None in found else APACHE
    return licence, notes, ids


def corpus_terms(corpora: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    """Return lines for the card, whether all licences are known, and data set ids.

    Args:
        corpora: Values of ``--corpus``.
    """
    rows = [CORPORA.get(corpus, (corpus, None, None)) for corpus in corpora]
    notes = [
        f"training data: {name}, licence {terms or UNKNOWN}" for name, terms, _ in rows
    ]
    return notes, all(terms for _, terms, _ in rows), [row[2] for row in rows if row[2]]


def check_package(
    run: Run,
    package: Path,
    expdir: Path,
    raw_dir: Path,
    decode_config: Path,
    device: str = "cpu",
    utterances: int | None = 4,
) -> int:
    """Decode test utterances with the finished head and with its package.

    Args:
        run: The head.
        package: Its zip.
        expdir: Parent of the experiment directories.
        raw_dir: Parent of the data directories.
        decode_config: ESPnet decoding config.
        device: Where the models run.
        utterances: First so many of each test set; ``None``: all.

    Returns:
        How many utterances were compared.

    Raises:
        RecipeError: A text differs; the package is removed, so that nobody publishes
            it.
    """
    options = read_yaml(decode_config)
    audio: dict[str, str] = {}
    for name in dict.fromkeys(n for sets in run.tests.values() for n in sets):
        table = read_table(raw_dir / name / "wav.scp")
        audio |= dict(list(table.items())[:utterances])
    with tempfile.TemporaryDirectory() as scratch:
        write_table(Path(scratch) / "wav.scp", audio)
        samples = count_samples(Path(scratch) / "wav.scp")
        unpacked = Path(unpack_model(package, scratch)["asr_train_config"]).parent
        before, after = (
            decode_utterances(directory, samples, options, device)
            for directory in (run.directory(expdir) / "final", unpacked)
        )
    for utt, (text, *_) in before.items():
        if after[utt][0] != text:
            package.unlink()
            raise RecipeError(
                f"{package}: decodes {utt} as {after[utt][0]!r}, but the model before "
                f"packing as {text!r}; run stage 13 again"
            )
    logging.info("%s: %d utterances decode as before", package, len(before))
    return len(before)
