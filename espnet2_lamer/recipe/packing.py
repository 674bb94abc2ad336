"""Stages 13 and 14: what is published, and its upload when it is asked for."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from espnet2_lamer.convert.load import public_name
from espnet2_lamer.convert.packed import unpack_model
from espnet2_lamer.data.speech import read_speech
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.feature_store import count_samples
from espnet2_lamer.evaluation.head_decoding import decode_utterances
from espnet2_lamer.evaluation.recogniser import Recogniser
from espnet2_lamer.evaluation.recogniser_files import extra_files, lm_files
from espnet2_lamer.evaluation.runs import Run
from espnet2_lamer.export.adapter import write_adapter
from espnet2_lamer.export.card import Origin, model_card
from espnet2_lamer.export.upload import repository_files, upload_files
from espnet2_lamer.export.zoo import pack_model, write_full_model
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.recipe.benchmark import adapter_files, packages, planned_runs
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.scoring import DECODE_CONFIG
from espnet2_lamer.recipe.upstreams import base_path, read_checkpoints
from espnet2_lamer.units.codebook import load_codebook


def pack(options: Options) -> None:
    """Stage 13: zips for ``espnet_model_zoo`` and the adapter file.

    Raises:
        RecipeError: A package does not decode what its model decodes.
    """
    results = options.results / "RESULTS.md"
    metadata = {"codebook_sha256": load_codebook(options.codebook).sha256}
    runs = {run.name: run for run in planned_runs(options)}
    pretraining = options.ssl_experiment
    sources = {name: c["source"] for name, c in read_checkpoints(options).items()}
    corpora = options.corpus.split()
    terms = licence_terms(sources["base"], sources["teacher"], corpora)
    datasets = terms.pop("datasets")
    for name, output in packages(options).items():
        final, extra = options.expdir / name / "final", [results]
        config, weights = final / "config.yaml", final / "model.pth"
        extra += extra_files(final)
        if name == pretraining.name:
            config, weights = write_full_model(pretraining, options.packed / name)
        kind = "ssl" if name == pretraining.name else "asr"
        card = model_card(
            kind,
            Origin(name, options.langs, **terms),
            results=results.read_text(encoding="utf-8"),
            datasets=datasets,
        )
        pack_model(
            kind,
            config,
            weights,
            output,
            options=extra,
            card=card,
            metadata=metadata,
            lm=lm_files(final),
        )
        log_size("packed", output)
        if name in runs:
            where = (options.expdir, options.raw, DECODE_CONFIG)
            check_package(runs[name], output, *where, device=options.device)
    for output in adapter_files(options).values():
        write_adapter(
            pretraining,
            output,
            Origin(pretraining.name, options.langs, **terms),
            base=base_path(options),
            base_name=public_name(sources["base"]),
            codebook=options.codebook,
        )
        log_size("wrote", output)


def log_size(what: str, file: Path) -> None:
    """Say that a file was written, and how large it is."""
    logging.info("%s %s (%.1f MB)", what, file, file.stat().st_size / 1e6)


def upload(options: Options) -> None:
    """Stage 14: upload what was packed; the pretraining lies at the top."""
    packed = packages(options) | adapter_files(options)
    files = repository_files(packed, options.ssl_experiment.name)
    upload_files(options.hf_repo, files, options.dry_run)


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
) -> dict[str, str | list[str]]:
    """Return what an :class:`Origin` and a card say of licences.

    Returns:
        ``licence``: its id on Hugging Face, the teacher's where that binds more than
        Apache's, ``other`` where one is not known; ``notes``: where it comes from;
        ``datasets``: ids of data sets.
    """
    found, notes = [], []
    for role, source in (("base", base), ("teacher of the units", teacher)):
        name = public_name(source.rstrip("/").removeprefix("downloads/"))
        found.append(WEIGHTS.get(name))
        notes.append(f"{role}: {name}, licence {found[-1] or UNKNOWN}")
    of_data, known, ids = corpus_terms(corpora)
    binding = [licence for licence in found if licence not in (APACHE, None)]
    free = APACHE if known and None not in found else "other"
    licence = (binding or [free])[0]
    return {"licence": licence, "notes": [*notes, *of_data], "datasets": ids}


def corpus_terms(corpora: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    """Return lines for the card, whether all licences are known, and data set ids."""
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

    The first ``utterances`` of each test set, or all, and how many these were.

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
    # And as its users will: with its language models, where it has some.
    models = (Recogniser(source, device) for source in (run.directory(expdir), package))
    texts = [{utt: hyp[0] for utt, hyp in found.items()} for found in (before, after)]
    for found, model in zip(texts, models, strict=True):
        if model.search is not None:
            for utt, path, _ in samples:
                found[f"{utt} with LM"] = model(read_speech(utt, path)).text
    for utt, text in texts[0].items():
        if texts[1][utt] != text:
            package.unlink()
            raise RecipeError(
                f"{package}: decodes {utt} as {texts[1][utt]!r}, but the model before "
                f"packing as {text!r}; run stage 13 again"
            )
    logging.info("%s: %d utterances decode as before", package, len(before))
    return len(before)
