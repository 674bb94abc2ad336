"""Stages 1, 2 and 9: corpora in, formatted sets for pretraining and for heads."""

import logging
from collections.abc import Sequence
from dataclasses import fields
from itertools import product

from espnet2_lamer.data.corpora import CORPORA, MHUBERT147_AUDIO, OWN
from espnet2_lamer.data.corpora.prepare import join_corpora, prepare
from espnet2_lamer.data.espeak import VOICES
from espnet2_lamer.data.manifest import prepare_manifest
from espnet2_lamer.data.mini import build_mini, join_mini
from espnet2_lamer.data.segmented_rows import Segmenting
from espnet2_lamer.data.selection import Selection, prepare_ssl_data
from espnet2_lamer.data.sets import SPLITS, Utterance, remove_other_corpora
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.benchmark_sets import (
    SPEECH_MINUTES,
    prepare_asr_data,
    source_dir,
    write_budget,
)
from espnet2_lamer.evaluation.mlsuperb import (
    prepare_mlsuperb,
    read_transcript,
    scan_tree,
)
from espnet2_lamer.evaluation.mlsuperb2 import prepare_mlsuperb2
from espnet2_lamer.evaluation.paper_sets import prepare_paper_sets
from espnet2_lamer.parallel import workers
from espnet2_lamer.recipe.benchmark import (
    alone,
    eval_corpora,
    eval_langs,
    without_text,
)
from espnet2_lamer.recipe.common_options import CommonOptions
from espnet2_lamer.recipe.files import set_sources
from espnet2_lamer.recipe.options import Options


def prepare_corpus(options: CommonOptions) -> None:
    """What ``local/data.py CORPUS`` does; several corpora are joined.

    Raises:
        RecipeError: No such corpus, none, or one that cannot be read.
    """
    corpora = list(dict.fromkeys(options.corpus.split()))
    unknown = [corpus for corpus in corpora if corpus not in (*CORPORA, *OWN)]
    if unknown:
        raise RecipeError(
            f"--corpus {unknown[0]}: no such corpus, expected mini, manifest, or some "
            f"of {', '.join(CORPORA)}; docs/adding_a_corpus.md says how to read another"
        )
    if not corpora:
        raise RecipeError(
            f"--corpus {options.corpus!r}: names none; give one, or several of "
            f"{', '.join((*OWN, *CORPORA))}"
        )
    if options.manifest and "manifest" not in corpora:
        raise RecipeError(
            f"--manifest {options.manifest}: --corpus {options.corpus} does not read "
            f'it; say --corpus manifest, or --corpus "{options.corpus} manifest"'
        )
    if options.segment != "none" and "manifest" not in corpora:
        raise RecipeError(
            f"--segment {options.segment}: cuts the recordings of --corpus manifest; "
            f"those of --corpus {options.corpus} are utterances already"
        )
    to, langs, seed = options.datadir, options.langs, options.seed
    names = "segments min_duration max_duration max_bad_audio nj".split()
    how = {name: getattr(options, name) for name in names}
    segmenting = Segmenting(options.segment, **how)
    own = options.manifest, to, langs, options.exclude_sources, seed, segmenting
    if corpora == ["mini"]:
        remove_other_corpora(to)
        build_mini(to, options.nj, seed, langs=langs)
    elif corpora == ["manifest"]:
        remove_other_corpora(to)
        prepare_manifest(*own)
    else:
        there = _prepare_public(options, [c for c in corpora if c not in OWN])
        if "manifest" in corpora:
            sets = prepare_manifest(*own, joined=True)["sets"]
            there |= {name.partition("_")[2] for name in sets}
        if "mini" in corpora:
            # Synthetic speech is for languages that nothing else has.
            missing = [x for x in langs if x in VOICES and x not in there]
            text = "mini gives %s: the other languages come from elsewhere"
            logging.info(text, ", ".join(missing) or "nothing")
            join_mini(to, missing, options.nj, seed)
        join_corpora(corpora, to, langs, seed)


def _prepare_public(options: CommonOptions, corpora: Sequence[str]) -> set[str]:
    """Prepare public corpora; return the languages that they give to pretraining."""
    paths, there = options.corpus_paths, set()
    for corpus in corpora:
        more = {}
        if corpus == "mhubert147":
            more["audio_root"] = paths[MHUBERT147_AUDIO]
        where = paths[CORPORA[corpus]], options.datadir, options.langs
        report = prepare(corpus, *where, options.max_missing, options.nj, **more)
        there |= report["pretraining_hours"].keys()
    return there


def prepare_speech(options: Options) -> None:
    """Stage 1: the corpus, and whether later stages will find what they need."""
    # What else stage 1 does is short.
    with workers(options.dask if options.segment == "vad" else ""):
        prepare_corpus(options)
    check_evaluation(options)


def check_evaluation(options: Options) -> None:
    """Look for what stages 9 to 12 of this run read, before days of pretraining.

    Raises:
        RecipeError: A set is missing.
    """
    asked = {*range(options.stage, options.stop_stage + 1)} - {*options.skip_stages}
    if asked.isdisjoint(range(9, 13)):
        return
    needed = set_sources(options)
    try:
        if options.benchmark == "own":
            for lang, split in product(eval_langs(options), SPLITS):
                needed.append(source_dir(options.datadir, split, lang) / "wav.scp")
        if missing := [path for path in needed if not path.is_file()]:
            raise RecipeError(f"{missing[0]}: file not found")
    except RecipeError as error:
        raise RecipeError(
            f"{error}; stages 9 to 12 need it: add it, choose others with --eval_langs "
            "or --benchmark, or end with --stop_stage 8"
        ) from None
    only = alone(options)
    for lang, split in without_text(options).items():
        text = "%s: no utterance of %s has text: it is left out of speech recognition"
        logging.warning(text, lang, split)
        if "lid" in options.tracks and not only:
            text = "%s: identification takes up to %g minutes of it, without text"
            logging.info(text, lang, SPEECH_MINUTES["train"])
    if only:
        text = "%s is the only language: there is nothing to identify it from (lid)"
        logging.warning(text, only)


def format_ssl(options: Options) -> None:
    """Stage 2: 16 kHz mono, duration filter, replay sample, overlap."""
    stated = vars(options) | {
        "min_s": options.min_duration,
        "max_s": options.max_duration,
    }
    selection = Selection(
        **{field.name: stated[field.name] for field in fields(Selection)}
    )
    with workers(options.dask):
        report = prepare_ssl_data(
            options.datadir,
            options.dumpdir,
            selection,
            options.nj,
            compare_hours=options.preset == "paper",
            lists=_mlsuperb_lists(options),
        )
    logging.debug("%s", report)


def _mlsuperb_lists(options: Options) -> dict[str, list[Utterance]]:
    """Dev and test lists of ML-SUPERB's data in the languages of pretraining."""
    if not options.overlap_tree:
        return {}
    return {
        f"mlsuperb/{dataset}/{split}_{lang}": list(
            read_transcript(folder / f"transcript_10min_{split}.txt", lang, dataset)
        )
        for (dataset, lang), folder in scan_tree(options.overlap_tree).items()
        if lang in options.langs
        for split in ("dev", "test")
    }


def format_evaluation(options: Options) -> None:
    """Stage 9: train, dev and test sets of the benchmark, in each language's unit."""
    langs, budgets = eval_langs(options), options.budgets
    where = (options.datadir, options.dumpdir, langs, options.units)
    audio = {"nj": options.nj, "max_bad_audio": options.max_bad_audio}
    norm = {"text_norm": options.text_norm}
    with workers(options.dask):
        if options.benchmark == "mlsuperb":
            prepare_mlsuperb(
                options.mlsuperb,
                *where,
                budgets,
                nj=options.nj,
                datasets=options.eval_corpora,
                seed=options.seed,
                **norm,
            )
        elif options.benchmark == "paper":
            lists = options.eval_lists or None
            prepare_paper_sets(
                *where,
                budgets,
                seed=options.seed,
                lists_dir=lists,
                corpora=eval_corpora(options),
                **audio,
                **norm,
            )
        elif options.benchmark == "mlsuperb2":
            prepare_mlsuperb2(options.mlsuperb, *where[:3], **audio)
        else:
            silent = without_text(options)
            heard = {"seed": options.seed, "speech_only": silent}
            prepare_asr_data(*where, **heard, **audio, **norm)
            for budget in options.budgets:
                for lang in langs if budget != "all" else ():
                    train = options.raw / f"asr_{lang}_train"
                    write_budget(train, budget, options.seed)
