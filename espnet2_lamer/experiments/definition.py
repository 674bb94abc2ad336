"""What an experiment is: a YAML file that names systems, seeds and their options."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.experiments.measures import KINDS
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.recipe.options import Options

#: Options of run.sh that name a YAML file which a definition may change.
CONFIGS = ("ssl_config", "asr_config", "lid_config", "multi_config")
#: What the tool itself sets for every command.
OWN = (
    *("stage", "stop_stage", "skip_stages", "datadir", "dumpdir", "expdir", "python"),
    # Only who starts the run says what is trusted.
    "trust_s3prl_files",
)
# Kinds of which neither direction is better.
_UNDIRECTED = tuple(name for name, kind in KINDS.items() if kind.better == "neither")
EXPECTATIONS = ("better", "worse", "higher", "lower", "equal")
_KEYS = {
    *("title", "source", "note", "defaults", "seeds", "minutes", "data_minutes"),
    *("data", "cell", "configs", "systems", "baseline", "claims", "transfer"),
}
_OPTIONS = {option.name for option in fields(Options)}
_SYSTEM_KEYS = {"description", "data", "cell", "configs", "seeds", "minutes"}


@dataclass(frozen=True)
class System:
    """One row of the tables: options that are the same in all its cells.

    Attributes:
        name: Its name in tables.
        description: What it is, in a few words.
        data: Options of run.sh that stages 0-6 and 9 depend on.
        cell: Other options of run.sh, of stages 7 to 12.
        configs: Per option of :data:`CONFIGS` its ``file`` and the ``change`` to it.
        seeds: Seeds of its cells.
        minutes: Estimated time of a cell before any was run.
    """

    name: str
    description: str
    data: Mapping[str, Any]
    cell: Mapping[str, Any]
    configs: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    minutes: float


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper that the experiment may confirm.

    Attributes:
        text: The sentence.
        system: Whose figure it is about.
        than: The system it is compared with; default is the baseline.
        measure: Name of the figure, as in the tables.
        expect: ``better``, ``worse`` or ``equal``; ``higher`` or ``lower`` where
            neither is better, as of CKA.
    """

    text: str
    system: str
    than: str
    measure: str
    expect: str


@dataclass(frozen=True)
class Definition:
    """An experiment.

    Attributes:
        name: Stem of the file.
        title: Heading of its tables.
        source: Where the question comes from, e.g. "Lamer-SSL, Table 2".
        note: What a reader must know of the figures.
        systems: Rows by name, in order.
        baseline: The system that the others are tested against.
        claims: What is judged.
        data_minutes: Estimated time of stages 0-6 and 9.
        transfer: For the transfer matrix: systems in the order in which each continues
            the one before, and the language that each of them learnt.
    """

    name: str
    title: str
    source: str
    note: str
    systems: Mapping[str, System]
    baseline: str
    claims: Sequence[Claim] = ()
    data_minutes: float = 2.0
    transfer: Mapping[str, str] = field(default_factory=dict)
    seeds: tuple[int, ...] = field(default=(0,))


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
    """Read and check a definition.

    ``defaults: FILE`` names a YAML file beside it whose content lies below.

    Args:
        path: The file.
        data: On top of its ``data``.

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
        str(name): _system(path, str(name), own or {}, values)
        for name, own in _mapping(path, "systems", values["systems"]).items()
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
        transfer=_mapping(path, "transfer", values.get("transfer") or {}),
        seeds=_seeds(path, "seeds", values["seeds"]),
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


def _mapping(path: Path, key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecipeError(
            f"{path}: {key}: found {value!r}, expected 'key: value' lines"
        )
    return value


def _check_keys(path: Path, values: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(values) - known)
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


def _system(
    path: Path, name: str, own: Mapping[str, Any], values: Mapping[str, Any]
) -> System:
    where = f"systems.{name}"
    own = _mapping(path, where, own)
    _check_keys(path, own, _SYSTEM_KEYS)
    parts = {
        key: merge(
            _mapping(path, key, values.get(key) or {}),
            _mapping(path, f"{where}.{key}", own.get(key) or {}),
        )
        for key in ("data", "cell", "configs")
    }
    for key in ("data", "cell"):
        for option in parts[key]:
            if option not in (*_OPTIONS, *OWN):
                raise RecipeError(
                    f"{path}: {where}: {key}.{option}: unknown option, expected some "
                    f"of run.sh's: {', '.join(sorted(_OPTIONS))}"
                )
            allowed = {"data": ("seed",), "cell": ("skip_stages",)}[key]
            if option in (*OWN, *CONFIGS, "seed") and option not in allowed:
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
        name=name,
        description=str(own.get("description", "")),
        **parts,
        seeds=_seeds(path, f"{where}.seeds", own.get("seeds", values["seeds"])),
        minutes=float(own.get("minutes", values.get("minutes", 4))),
    )


def _claim(path: Path, value: Any, values: Mapping[str, Any]) -> Claim:
    fields = {"than": values.get("baseline"), **_mapping(path, "claims", value)}
    expected = {"text", "system", "than", "measure", "expect"}
    if set(fields) != expected or fields["expect"] not in EXPECTATIONS:
        raise RecipeError(
            f"{path}: claims: found {value!r}, expected text, system, measure, expect "
            f"({', '.join(EXPECTATIONS)}) and, unless it is the baseline, than"
        )
    claim = Claim(**{key: str(text) for key, text in fields.items()})
    if claim.measure.startswith(_UNDIRECTED) and claim.expect in ("better", "worse"):
        raise RecipeError(
            f"{path}: claims: {claim.text!r}: expect: found {claim.expect}, expected "
            f"higher, lower or equal: of {claim.measure} neither direction is better"
        )
    return claim
