"""Stages 1, 2 and 9: corpora in, formatted sets for pretraining and for heads."""

import importlib.util
import logging
from pathlib import Path

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe.options import Options


def prepare_corpus(options: Options) -> None:
    """Stage 1: run ``local/<corpus>.py``."""
    script = Path("local") / f"{options.corpus}.py"
    if not script.is_file():
        known = sorted(p.stem for p in Path("local").glob("*.py"))
        raise RecipeError(
            f"--corpus {options.corpus}: {script} not found, expected one of "
            f"{', '.join(known)}"
        )
    command = ["--output", str(options.datadir), "--seed", str(options.seed)]
    if options.corpus == "manifest":
        if not options.manifest:
            raise RecipeError(
                "--corpus manifest needs --manifest: a TSV file or a folder of audio "
                "per language"
            )
        command += ["--manifest", options.manifest, "--langs", " ".join(options.langs)]
        if options.exclude_sources:
            command += ["--exclude_sources", " ".join(options.exclude_sources)]
    else:
        command += ["--nj", str(options.nj)]
    spec = importlib.util.spec_from_file_location(f"local_{options.corpus}", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(command)


def format_ssl(options: Options) -> None:
    """Stage 2: 16 kHz mono, duration filter, replay sample."""
    from espnet2_lamer.data.selection import prepare_ssl_data

    report = prepare_ssl_data(
        options.datadir,
        options.dumpdir,
        options.new_langs,
        options.replay_langs,
        options.replay_hours,
        options.min_duration,
        options.max_duration,
        options.seed,
        options.nj,
    )
    logging.debug("%s", report)


def format_asr(options: Options) -> None:
    """Stage 9: train, dev and test sets of every language in its unit."""
    from espnet2_lamer.data.mlsuperb import prepare_asr_data

    prepare_asr_data(
        options.datadir,
        options.dumpdir,
        options.langs,
        options.units,
        seed=options.seed,
        nj=options.nj,
    )
