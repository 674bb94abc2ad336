"""Run stages of the recipe; ``egs2/lamer_ssl/ssl1/run.sh`` calls this."""

import argparse
from pathlib import Path

from espnet2_lamer.bin.common import (
    COMMON_TYPES,
    check_stages,
    flag,
    get_argument_parser,
    numbers,
    quiet_terminal,
    run_main,
    words,
)
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.trust import (
    S3PRL_PREFIX,
    split_s3prl,
    trusting_s3prl_files,
)
from espnet2_lamer.recipe.benchmark import check_benchmark
from espnet2_lamer.recipe.options import LAST_STAGE, Options
from espnet2_lamer.recipe.ssl_config import resolve_ssl_config
from espnet2_lamer.recipe.upstreams import upstream_specs


def _layer(text: str) -> int | str:
    if text == "all":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a number or all, found {text!r}"
        ) from None


def get_parser() -> argparse.ArgumentParser:
    """Return the argument parser; meaning and defaults stand in ``run.sh --help``."""
    parser = get_argument_parser(__doc__)
    types = {
        **COMMON_TYPES,
        "num_nodes": int,
        "dask": str,
        "base": str,
        "teacher": str,
        "teacher_layer": int,
        "retrain": flag,
        "trust_s3prl_files": flag,
        "new_langs": words,
        "replay_langs": words,
        "replay_hours": float,
        "replay_sampling": str,
        "replay_alpha": float,
        "replay_clusters": str,
        "dev_hours": float,
        "drop_overlap": flag,
        "kmeans_hours": float,
        "n_clusters": int,
        "allocation": str,
        "ssl_config": Path,
        "ssl_tag": str,
        "control": flag,
        "sanity": flag,
        "upstreams": words,
        "benchmark": str,
        "budgets": words,
        "tracks": words,
        "eval_langs": words,
        "eval_lists": str,
        "cross_corpus": flag,
        "lid_reading": str,
        "units": words,
        "multi_unit": str,
        "nbpe": int,
        "asr_config": Path,
        "asr_layer": _layer,
        "multi_config": Path,
        "lid_config": Path,
        "lid_layer": _layer,
        "store_dtype": str,
        "feature_store_gb": float,
        "eval_seeds": numbers,
        "learning_rates": lambda text: [float(word) for word in text.split()],
        "baselines": words,
    }
    for name, kind in types.items():
        parser.add_argument(f"--{name}", type=kind, required=True)
    return parser


def _check(options: Options) -> None:
    check_stages(options, LAST_STAGE)
    if options.sanity and not options.stage <= 7 <= options.stop_stage:
        raise RecipeError(
            f"--sanity: found stages {options.stage} to {options.stop_stage}, expected "
            "a range with stage 7, which it replaces"
        )
    if not options.new_langs:
        raise RecipeError("--new_langs: found none, expected at least one language")
    twice = sorted({x for x in options.langs if options.langs.count(x) > 1})
    if twice:
        raise RecipeError(
            f"--new_langs and --replay_langs: {' '.join(twice)} is named twice"
        )
    for name in ("n_clusters", "nj"):
        if getattr(options, name) < 1:
            raise RecipeError(
                f"--{name}: found {getattr(options, name)}, expected 1 or more"
            )
    if not 0 <= options.max_missing <= 100:
        raise RecipeError(
            f"--max_missing: found {options.max_missing:g}, expected 0 to 100 per cent"
        )
    for name in ("ssl_config", "asr_config", "multi_config", "lid_config"):
        if not getattr(options, name).is_file():
            raise RecipeError(f"--{name}: {getattr(options, name)} not found")


def _check_heads(options: Options) -> None:
    for name, values, least, expected in (
        ("eval_seeds", options.eval_seeds, 0, "seeds from 0"),
        ("learning_rates", options.learning_rates, 1e-30, "rates above 0"),
    ):
        if len(set(values)) < len(values) or min(values, default=least) < least:
            raise RecipeError(
                f"--{name}: found {' '.join(map(str, values))}, expected different "
                f"{expected}"
            )
    specs = upstream_specs(options).values()
    with trusting_s3prl_files(options.trust_s3prl_files):
        for source in (options.teacher, *(spec.source for spec in specs)):
            if source.startswith(S3PRL_PREFIX):
                split_s3prl(source)
    systems = [spec.system for spec in specs]
    unknown = [name for name in options.baselines if name not in systems]
    if unknown:
        raise RecipeError(
            f"--baselines: found {unknown[0]!r}, expected some of the systems of "
            f"--upstreams: {', '.join(systems)}"
        )


def _units(given: list[str], langs: list[str]) -> dict[str, str]:
    """Read ``eng=char cmn=pinyin``; languages not named get their default unit."""
    from espnet2_lamer.evaluation.text_units import UNITS, default_unit

    units = {lang: default_unit(lang) for lang in langs}
    for word in given:
        lang, _, unit = word.partition("=")
        if lang not in units or unit not in UNITS:
            raise RecipeError(
                f"--units: found {word!r}, expected LANG=UNIT with LANG one of "
                f"{' '.join(langs)} and UNIT one of {' '.join(UNITS)}"
            )
        units[lang] = unit
    return units


def main(cmd: list[str] | None = None) -> None:
    """Parse options, check them, run the stages."""
    values = vars(get_parser().parse_args(cmd))
    langs = [*values["replay_langs"], *values["new_langs"], *values["eval_langs"]]
    langs = [lang for lang in dict.fromkeys(langs) if lang != "all"]
    values["units"] = _units(values["units"], langs)
    options = Options(**values)
    _check(options)
    check_benchmark(options)
    resolve_ssl_config(options)
    _check_heads(options)
    quiet_terminal()

    from espnet2_lamer.recipe.runner import Runner
    from espnet2_lamer.recipe.stages import stages_of

    with trusting_s3prl_files(options.trust_s3prl_files):
        Runner(stages_of(options), options).run()


if __name__ == "__main__":
    run_main(main)
