"""What an experiment is: a YAML file of systems, seeds and claims, read and checked."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.experiments.measures import KINDS
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.recipe.options import Options

#: Options of run.sh that name a YAML file which a definition may change.
CONFIGS = "ssl_config asr_config lid_config multi_config finetune_config".split()
#: What the tool itself sets; only who starts the run says what is trusted.
OWN = tuple(
    "stage stop_stage skip_stages datadir dumpdir expdir python "
    "trust_s3prl_files".split()
)
EXPECTATIONS = ("better", "worse", "higher", "lower", "equal")
_UNDIRECTED = tuple(name for name, kind in KINDS.items() if kind.better == "neither")
_KEYS = (
    "title source note defaults seeds minutes data_minutes data cell configs "
    "environment systems baseline claims transfer"
).split()
_OPTIONS = {option.name for option in fields(Options)}


@dataclass(frozen=True)
class System:
    """One row of the tables: options that are the same in all its cells.

    Attributes:
        data: Options of run.sh that stages 0-6 and 9 depend on.
        cell: Other options of run.sh, of stages 7 to 12.
        configs: Per option of :data:`CONFIGS` its ``file`` and the ``change`` to it.
        environment: Variables that stages 7 to 12 see.
        minutes: Estimated time of a cell before any was run.
    """

    name: str
    description: str
    data: Mapping[str, Any]
    cell: Mapping[str, Any]
    configs: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, str]
    seeds: tuple[int, ...]
    minutes: float


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper that the experiment may confirm.

    ``measure`` is a figure of ``system``, by its name in the tables, that is compared
    with the same of ``than``, by default the baseline; ``expect`` is one of
    :data:`EXPECTATIONS`, ``higher`` or ``lower`` where neither is better, as of CKA.
    """

    text: str
    system: str
    than: str
    measure: str
    expect: str


@dataclass(frozen=True)
class Definition:
    """An experiment: the keys of its file.

    Attributes:
        source: Where the question comes from, e.g. "Lamer-SSL, Table 2".
        systems: Rows by name, in order; the others are tested against ``baseline``.
        data_minutes: Estimated time of stages 0-6 and 9.
        transfer: For the transfer matrix: systems in the order in which each continues
            the one before, and the language that each of them learnt.
        seeds: Of systems that have none of their own.
        given: Options of the data by the user, not by the file.
    """

    name: str
    title: str
    source: str
    note: str
    systems: Mapping[str, System]
    baseline: str
    claims: Sequence[Claim]
    data_minutes: float
    transfer: Mapping[str, str]
    seeds: tuple[int, ...]
    given: Mapping[str, Any]


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``change`` on top: mappings merge, all else replaces."""
    merged = copy.deepcopy(dict(base))
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(old, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def read_definition(
    path: str | Path, data: Mapping[str, Any] | None = None
) -> Definition:
    """Read and check a definition, with ``data`` on top of its own.

    ``defaults: FILE`` names a YAML file beside it whose content lies below.

    Raises:
        RecipeError: A file is missing or no mapping, a key is unknown or missing, or
            something is named that does not exist.
    """
    path = Path(path)
    values = read_yaml(path)
    if "defaults" in values:
        below = read_yaml(path.parent / str(values.pop("defaults")))
        values = merge(below, values)
    if data:
        values = merge(values, {"data": data})
    _check_keys(path, values, _KEYS)
    for key in ("title", "seeds", "systems", "baseline"):
        if not values.get(key) and values.get(key) != 0:
            raise RecipeError(f"{path}: {key}: not found, expected a value")
    systems = {
        str(name): _system(path, name, values)
        for name in _mapping(path, values, "systems")
    }
    definition = Definition(
        name=path.stem,
        title=str(values["title"]),
        source=str(values.get("source", "")),
        note=" ".join(str(values.get("note", "")).split()),
        systems=systems,
        baseline=str(values["baseline"]),
        claims=tuple(_claim(path, one, values) for one in values.get("claims") or []),
        data_minutes=float(values.get("data_minutes", 2.0)),
        transfer=_mapping(path, values, "transfer"),
        seeds=_seeds(path, "seeds", values["seeds"]),
        given=dict(data or {}),
    )
    named = [("baseline", definition.baseline)]
    named += [("transfer", name) for name in definition.transfer]
    named += [("claims", n) for c in definition.claims for n in (c.system, c.than)]
    for key, name in named:
        if name not in systems:
            raise RecipeError(
                f"{path}: {key}: found {name!r}, expected one of {', '.join(systems)}"
            )
    return definition


def _mapping(
    path: Path, values: Mapping[str, Any], key: str, where: str = ""
) -> dict[str, Any]:
    found = values.get(key) or {}
    if not isinstance(found, dict):
        raise RecipeError(
            f"{path}: {where}{key}: found {found!r}, expected 'key: value' lines"
        )
    return found


def _check_keys(path: Path, values: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise RecipeError(
            f"{path}: {unknown[0]}: unknown key, expected some of "
            f"{', '.join(sorted(known))}"
        )


def _seeds(path: Path, key: str, value: Any) -> tuple[int, ...]:
    ok = isinstance(value, list) and value and all(type(v) is int for v in value)
    if not ok or len(set(value)) < len(value) or min(value) < 0:
        raise RecipeError(
            f"{path}: {key}: found {value!r}, expected a list of different whole "
            "numbers from 0"
        )
    return tuple(value)


def _system(path: Path, name: Any, values: Mapping[str, Any]) -> System:
    where = f"systems.{name}"
    own = _mapping(path, values["systems"], name, "systems.")
    _check_keys(path, own, [field.name for field in fields(System)][1:])
    parts = {
        key: merge(_mapping(path, values, key), _mapping(path, own, key, f"{where}."))
        for key in ("data", "cell", "configs", "environment")
    }
    parts["environment"] = {k: str(v) for k, v in parts["environment"].items()}
    for key, allowed in (("data", "seed"), ("cell", "skip_stages")):
        for option in parts[key]:
            if option not in (*_OPTIONS, *OWN):
                raise RecipeError(
                    f"{path}: {where}: {key}.{option}: unknown option, expected some "
                    f"of run.sh's: {', '.join(sorted(_OPTIONS))}"
                )
            if option in (*OWN, *CONFIGS, "seed") and option != allowed:
                raise RecipeError(
                    f"{path}: {where}: {key}.{option}: this option is set by the tool; "
                    "seeds stand under seeds, config files under configs"
                )
    for option, config in parts["configs"].items():
        if option not in CONFIGS or not {"file"} <= set(config) <= {"file", "change"}:
            raise RecipeError(
                f"{path}: {where}: configs.{option}: found {config!r}, expected some "
                f"of {', '.join(CONFIGS)}, each with file and change"
            )
    return System(
        name=str(name),
        description=str(own.get("description", "")),
        **parts,
        seeds=_seeds(path, f"{where}.seeds", own.get("seeds", values["seeds"])),
        minutes=float(own.get("minutes", values.get("minutes", 4))),
    )


def _claim(path: Path, value: Any, values: Mapping[str, Any]) -> Claim:
    found = {"than": values.get("baseline")}
    found |= value if isinstance(value, dict) else {}
    expected = {field.name for field in fields(Claim)}
    if set(found) != expected or found["expect"] not in EXPECTATIONS:
        raise RecipeError(
            f"{path}: claims: found {value!r}, expected text, system, measure, expect "
            f"({', '.join(EXPECTATIONS)}) and, unless it is the baseline, than"
        )
    claim = Claim(**{key: str(text) for key, text in found.items()})
    if claim.measure.startswith(_UNDIRECTED) and claim.expect in ("better", "worse"):
        raise RecipeError(
            f"{path}: claims: {claim.text!r}: expect: found {claim.expect}, expected "
            f"higher, lower or equal: of {claim.measure} neither direction is better"
        )
    return claim
