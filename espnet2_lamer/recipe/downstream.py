"""Stages 10 and 11: ML-SUPERB heads for ASR and LID on frozen upstreams."""

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe.checkpoints import base_path
from espnet2_lamer.recipe.options import Options

# What each upstream is, as the tables describe it.
UPSTREAMS = {
    "random": "the base's network with random weights",
    "base": "the base before continual pretraining",
    "lamer": "after continual pretraining with LoRA experts",
}


def upstream_sources(options: Options) -> dict[str, str]:
    """Map the names in ``--upstreams`` to what ``load_model`` reads.

    Raises:
        RecipeError: Unknown name.
    """
    known = {
        "random": str(options.random_upstream),
        "base": base_path(options),
        "lamer": str(options.ssl_experiment),
    }
    for name in options.upstreams:
        if name not in known:
            raise RecipeError(
                f"--upstreams: found {name!r}, expected some of {', '.join(known)}"
            )
    return {name: known[name] for name in options.upstreams}


def train_asr(options: Options) -> None:
    """Stage 10: one head per language and upstream."""
    from espnet2_lamer import load_model
    from espnet2_lamer.evaluation.downstream import train_head

    for name, source in upstream_sources(options).items():
        upstream = load_model(source)
        for lang in options.langs:
            train_head(
                upstream,
                options.asr_set(lang, "train"),
                options.asr_set(lang, "dev"),
                options.dumpdir / "feature_store",
                options.asr_experiment(lang, name),
                options.asr_config,
                layer=options.asr_layer,
                token_type="char" if options.units[lang] == "char" else "word",
                store_dtype=options.store_dtype,
                seed=options.seed,
                ngpu=options.ngpu,
            )


def train_lid(options: Options) -> None:
    """Stage 11: one head per upstream, on all languages mixed."""
    from espnet2_lamer import load_model
    from espnet2_lamer.evaluation.downstream import train_head

    for name, source in upstream_sources(options).items():
        train_head(
            load_model(source),
            [options.asr_set(lang, "train") for lang in options.langs],
            [options.asr_set(lang, "dev") for lang in options.langs],
            options.dumpdir / "feature_store",
            options.lid_experiment(name),
            options.lid_config,
            layer=options.lid_layer,
            target="lang",
            store_dtype=options.store_dtype,
            seed=options.seed,
            ngpu=options.ngpu,
        )
