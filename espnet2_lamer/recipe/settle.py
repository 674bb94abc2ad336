"""What options of ssl1 mean together: checked, and completed, before anything runs."""

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.text_units import UNITS, default_unit
from espnet2_lamer.fileio.trust import (
    S3PRL_PREFIX,
    split_s3prl,
    trusting_s3prl_files,
)
from espnet2_lamer.recipe.benchmark import check_benchmark
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.ssl_config import resolve_ssl_config
from espnet2_lamer.recipe.upstreams import upstream_specs


def settle(options: Options) -> None:
    """Check what the options say together, and fill in what follows, in place.

    Raises:
        RecipeError: Naming the option, what was found and what is expected.
    """
    if not options.new_langs:
        raise RecipeError("--new_langs: found none, expected at least one language")
    twice = sorted({x for x in options.langs if options.langs.count(x) > 1})
    if twice:
        raise RecipeError(
            f"--new_langs and --replay_langs: {' '.join(twice)} is named twice"
        )
    if options.max_missing > 100:
        raise RecipeError(
            f"--max_missing: found {options.max_missing:g}, expected 0 to 100 per cent"
        )
    options.units = _units(options)
    check_benchmark(options)
    resolve_ssl_config(options)
    _check_heads(options)


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


def _units(options: Options) -> dict[str, str]:
    """Return the unit of every language; those not named get their default."""
    langs = dict.fromkeys([*options.langs, *options.eval_langs])
    units = {lang: default_unit(lang) for lang in langs if lang != "all"}
    for lang, unit in options.units.items():
        if lang not in units or unit not in UNITS:
            found = f"{lang}={unit}" if unit else lang
            raise RecipeError(
                f"--units: found {found!r}, expected LANG=UNIT with LANG one of "
                f"{' '.join(units)} and UNIT one of {' '.join(UNITS)}"
            )
        units[lang] = unit
    return units
