"""Stages 3-6: teacher features, codebook, pseudo-labels, shape files."""

import logging

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe.checkpoints import teacher_path
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.pretraining import write_shapes


def _teacher(options: Options):
    from espnet2_lamer.units.teacher import load_teacher

    return load_teacher(teacher_path(options), options.teacher_layer, _device(options))


def _device(options: Options) -> str:
    return "cuda" if options.ngpu else "cpu"


def _processes(options: Options) -> int:
    # They share one GPU: two keep it busy, more would only take its memory.
    return min(options.nj, 2) if options.ngpu else options.nj


def dump(options: Options) -> None:
    """Stage 3: teacher features of sampled hours per language."""
    from espnet2_lamer.units.features import dump_features

    train = options.raw / "ssl_train"
    dump_features(
        _teacher(options),
        train / "wav.scp",
        options.features,
        utt2lang=train / "utt2lang",
        hours_per_lang=options.kmeans_hours,
        seed=options.seed,
        nj=_processes(options),
    )


def cluster(options: Options) -> None:
    """Stage 4: k-means, and how good it is."""
    from espnet2_lamer.units.kmeans import KmeansConfig, learn_kmeans

    learn_kmeans(
        options.features,
        options.codebook,
        KmeansConfig(options.n_clusters, seed=options.seed),
        nj=options.nj,
        device=_device(options),
    )


def label(options: Options) -> None:
    """Stage 5: units of every utterance, their quality, the token list."""
    from espnet2_lamer.units.codebook import load_codebook
    from espnet2_lamer.units.labels import assign_units, write_token_list
    from espnet2_lamer.units.quality import figures, label_quality, write_quality

    units = len(load_codebook(options.codebook).centroids)
    if units != options.n_clusters:
        raise RecipeError(
            f"{options.codebook}: {units} units, --n_clusters is {options.n_clusters}; "
            f"give --n_clusters {units}, or run stage 4 again"
        )
    teacher = _teacher(options)
    for split in ("ssl_train", "ssl_dev"):
        directory = options.raw / split
        assign_units(
            teacher,
            options.codebook,
            directory / "wav.scp",
            directory / "text.km",
            nj=_processes(options),
        )
    write_token_list(options.dumpdir / "units" / "tokens.txt", options.n_clusters)
    phones = directory / "phones.ctm"
    report = label_quality(
        directory / "text.km",
        options.n_clusters,
        phones_ctm=phones if phones.is_file() else None,
        utt2lang=directory / "utt2lang",
    )
    write_quality(report, options.expdir / "label_quality.json")
    logging.info("units on held-out speech: %s", figures(report))


def shapes(options: Options) -> None:
    """Stage 6: shape files, which follow from the sample counts."""
    write_shapes(options.raw / "ssl_train", options.stats / "train")
    write_shapes(options.raw / "ssl_dev", options.stats / "valid")
