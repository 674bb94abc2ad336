"""What options of ssl1 mean together: checked, and completed, before anything runs."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet2_lamer.constants import LID_ROUTED
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.spread import read_spreads
from espnet2_lamer.evaluation.text_units import (
    OFFICIAL,
    READ_UNITS,
    UNICODE,
    UNITS,
    WRITTEN,
    default_unit,
)
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.fileio.trust import (
    S3PRL_PREFIX,
    split_s3prl,
    trusting_s3prl_files,
)
from espnet2_lamer.recipe.benchmark import (
    can_tune,
    check_benchmark,
    describe_systems,
    eval_langs,
)
from espnet2_lamer.recipe.declaration import as_text, refused
from espnet2_lamer.recipe.options import HEAD_ONLY_TAG, RECLUSTERED, Options
from espnet2_lamer.recipe.upstreams import upstream_specs


def settle(options: Options) -> None:
    """Check what the options say together, and fill in what follows, in place.

    Raises:
        RecipeError: Naming the option, what was found and what is expected.
    """
    if not options.new_langs:
        raise refused("new_langs", "none", "at least one language")
    twice = sorted({x for x in options.langs if options.langs.count(x) > 1})
    if twice:
        raise RecipeError(
            f"--new_langs and --replay_langs: {' '.join(twice)} is named twice"
        )
    if options.max_missing > 100:
        raise refused("max_missing", f"{options.max_missing:g}", "0 to 100 per cent")
    options.units = _units(options)
    own = {"mlsuperb": OFFICIAL, "mlsuperb2": WRITTEN}.get(options.benchmark, UNICODE)
    options.text_norm = options.text_norm or own
    # Scores of 2.0 ignore punctuation, those of the others do not.
    if (options.text_norm == WRITTEN) != (options.benchmark == "mlsuperb2"):
        expected = f"{own} with --benchmark {options.benchmark}"
        raise refused("text_norm", repr(options.text_norm), expected)
    check_benchmark(options)
    resolve_ssl_config(options)
    if "spread" in options.given:
        # Before days of training, not after them.
        read_spreads(options.spread, options.ssl_tag)
    _check_heads(options)


def _check_heads(options: Options) -> None:
    for name, values, least, expected in (
        ("eval_seeds", options.eval_seeds, 0, "seeds from 0"),
        ("learning_rates", options.learning_rates, 1e-30, "rates above 0"),
    ):
        if len(set(values)) < len(values) or min(values, default=least) < least:
            raise refused(name, as_text(values), f"different {expected}")
    specs = upstream_specs(options).values()
    with trusting_s3prl_files(options.trust_s3prl_files):
        for source in (options.teacher, *(spec.source for spec in specs)):
            if source.startswith(S3PRL_PREFIX):
                split_s3prl(source)
    _check_tuning(options)
    systems = [*describe_systems(options)]
    unknown = [name for name in options.baselines if name not in systems]
    if unknown:
        known = f"some of the systems of --upstreams: {', '.join(systems)}"
        raise refused("baselines", repr(unknown[0]), known)


def _check_tuning(options: Options) -> None:
    """Refuse what cannot be tuned; say which upstreams are left out of it."""
    if len(set(options.tune)) < len(options.tune):
        raise refused("tune", as_text(options.tune), "different names")
    if len(set(options.upstream_mode)) < len(options.upstream_mode):
        raise refused("upstream_mode", as_text(options.upstream_mode), "each once")
    for tune in options.tune:
        names = options.upstreams
        left_out = [name for name in names if not can_tune(options, name, tune)]
        if len(left_out) == len(names):
            expected = {
                "experts": "an upstream with experts, such as lamer",
                LID_ROUTED: "one of this package's without experts, such as base",
            }.get(tune, "one of this package's")
            raise refused("tune", f"{tune} with --upstreams {as_text(names)}", expected)
        if left_out:
            text = "--tune %s: no head of %s, of which nothing of the kind can train"
            logging.info(text, tune, as_text(left_out))
    if LID_ROUTED in options.tune:
        _check_languages(options)
    for lang, file in options.lm_train_text.items():
        if lang not in options.langs or not Path(file).is_file():
            expected = f"LANG=FILE with LANG one of {as_text(options.langs)}"
            raise refused("lm_train_text", repr(f"{lang}={file}"), expected)
    if options.lm_train_text and not options.language_models:
        text = "--lm_train_text %s is not read: no --use_ngram true or --use_lm true"
        logging.warning(text, as_text(options.lm_train_text))


def _check_languages(options: Options) -> None:
    """Refuse routing by language where no head has several."""
    if "multi_asr" not in options.tracks:
        found = f"{LID_ROUTED} with --tracks {as_text(options.tracks)}"
        raise refused(
            "tune", found, "multi_asr among the tracks: one recogniser of all"
        )
    if len(langs := eval_langs(options)) == 1 and langs != ["all"]:
        found = f"{LID_ROUTED} with {langs[0]} alone"
        raise refused("tune", found, "two or more languages to route by")


def _units(options: Options) -> dict[str, str]:
    """Return the unit of every language; those not named get their default."""
    langs = dict.fromkeys([*options.langs, *options.eval_langs])
    official = options.benchmark == "mlsuperb"
    units = {lang: default_unit(lang, official) for lang in langs if lang != "all"}
    for lang, unit in options.units.items():
        if lang not in units or unit not in UNITS:
            raise refused(
                "units",
                repr(f"{lang}={unit}" if unit else lang),
                f"LANG=UNIT with LANG one of {' '.join(units)} and UNIT one of "
                f"{' '.join(UNITS)}",
            )
        if lang not in READ_UNITS.get(unit, [lang]):
            raise refused("units", repr(f"{lang}={unit}"), f"a unit that fits {lang}")
        units[lang] = unit
    return units


# The other upstreams, whose heads stand in the same directory, and stage 6's ssl_stats.
_TAKEN_TAGS = ("random", "base", "stats")
# Options that do nothing where there are no experts.
_OF_EXPERTS = ("expand_from", "old_experts")
# Keys of the config that change how fast a training is, and nothing else.
_OF_SPEED = ("feature_cache_gb",)
#: Values of ``--allocation``: counts from the data, when stage 7 starts.
AUTO, LEARNT = "auto", "learnt"
FROM_DATA = (AUTO, LEARNT)


def resolve_ssl_config(options: Options) -> None:
    """Settle ``allocation``, ``ssl_tag`` and ``control`` of the options, in place.

    The allocation is the YAML's own; one given on the command line replaces it, which
    is logged and shows in the name of the experiment. The name comes from the YAML's:
    ``conf/tuning/train_ssl_milore.yaml`` trains ``exp/ssl_milore``. A config that
    trains the head alone is its own control.

    Raises:
        RecipeError: An allocation is malformed, is given for a config without experts,
            or is stated nowhere; or the name is taken.
    """
    path = options.ssl_config
    config = read_yaml(path)
    if not config:
        raise RecipeError(f"{path}: found no 'key: value' lines, expected a config")
    own = own_allocation(config)
    given = options.allocation.replace(" ", "")
    numbers = given in FROM_DATA or re.fullmatch(r"\d+(,\d+)*", given)
    if given and not numbers:
        counts = (
            "expert counts of 0 or more separated by commas, e.g. 2,4,6,8, or auto or "
            "learnt"
        )
        raise refused("allocation", repr(options.allocation), counts)
    if given and own is None:
        raise RecipeError(
            f"--allocation: found {given}, but {path} has no encoder_conf.lamer and "
            "trains the whole model; leave --allocation empty, or choose another "
            "--ssl_config"
        )
    if given in FROM_DATA and (own == "" or _is_zero(own or "")):
        raise RecipeError(
            f"--allocation: found {given}, but {path} has "
            f"encoder_conf.lamer.allocation {own or 'none'}; state counts there: "
            f"their sum is what {given} spreads"
        )
    if own == "" and not given:
        raise RecipeError(
            f"{path}: encoder_conf.lamer.allocation: found none, expected expert "
            "counts, e.g. 2,4,6,8; state it there or give --allocation"
        )
    options.allocation = given or own or ""
    head_only = _is_zero(options.allocation)
    # The size of a preset is not part of the name.
    tag = path.stem.removeprefix("train_").removeprefix("ssl_").removesuffix("_mini")
    if given and given != own:
        logging.info("--allocation %s replaces %s of %s", given, own or "none", path)
        tag += f"_{given.replace(',', '-')}"
    if head_only:
        # Nothing would differ between this run and its control.
        options.control, tag = False, HEAD_ONLY_TAG
    if options.recluster:
        _check_reclustering(options, config)
        tag += RECLUSTERED
    if not options.ssl_tag:
        options.ssl_tag = tag
    taken = _TAKEN_TAGS if head_only else (*_TAKEN_TAGS, HEAD_ONLY_TAG)
    if not re.fullmatch(r"\w[\w.-]*", options.ssl_tag) or options.ssl_tag in taken:
        name = f"a name of letters, digits and _ . - other than {', '.join(taken)}"
        raise refused("ssl_tag", repr(options.ssl_tag), name)


def _check_reclustering(options: Options, config: Mapping[str, Any]) -> None:
    """Refuse what cannot go on with new units."""
    found, path = f"{options.recluster} with", options.ssl_config
    if options.sanity:
        raise refused("recluster", f"{found} --sanity true", "one of them")
    if options.num_nodes > 1:
        expected = "one node: units are made between the trainings"
        raise refused("recluster", f"{found} --num_nodes {options.num_nodes}", expected)
    if config.get("expand_from"):
        expected = "none: the second round goes on from the first, and trains all"
        raise refused("recluster", f"{found} expand_from in {path}", expected)
    if not options.allocation or _is_zero(options.allocation):
        what = "an allocation of 0" if options.allocation else "no experts"
        expected = "a config with experts. Without them give two commands, the second "
        expected += "with --base and --teacher exp/ssl_NAME of the first, and --expdir "
        expected += "and --dumpdir of its own"
        raise refused("recluster", f"{found} {what} in {path}", expected)


def own_allocation(config: Mapping[str, Any]) -> str | None:
    """Return the YAML's allocation; ``None`` without experts, "" if not stated."""
    lamer = (config.get("encoder_conf") or {}).get("lamer")
    if lamer is None:
        return None
    value = lamer.get("allocation", "")
    if isinstance(value, list):
        value = ",".join(map(str, value))
    return str(value).replace(" ", "")


def _is_zero(allocation: str) -> bool:
    return set(allocation.split(",")) == {"0"}


def experts_options(allocation: str, rank: str = "") -> list[str]:
    """Return the ESPnet options of an allocation and of ranks; "" is the YAML's say.

    Without experts none of their other options matters, so they are dropped: every
    config of the family then has the same head-only control.
    """
    if not allocation:
        return []
    if _is_zero(allocation):
        return ["--encoder_conf", "lamer={allocation: 0}"]
    more = ["--encoder_conf", f"lamer.rank={rank}"] if rank else []
    return ["--encoder_conf", f"lamer.allocation={allocation}", *more]


def settings_of_experts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what experts are trained with, but for what changes only how fast."""
    return {k: v for k, v in config.items() if k not in _OF_SPEED}


def control_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the head-only control of a config is trained with."""
    settings = {k: v for k, v in config.items() if k not in _OF_EXPERTS + _OF_SPEED}
    for section, name in (("encoder_conf", "lamer"), ("model_conf", "distill_weight")):
        if section in config or section == "encoder_conf":
            settings[section] = dict(config.get(section) or {})
            settings[section].pop(name, None)
    return settings
