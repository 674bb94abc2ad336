"""What an experiment is: a YAML file of systems and seeds, and the cells it asks for.

A cell is one training, named by a hash of all that decides its result.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.experiments.measures import KINDS
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.fileio.hashing import sha256_file, sha256_value
from espnet2_lamer.recipe.declaration import read_preset
from espnet2_lamer.recipe.options import Options

#: Options of run.sh that name a YAML file which a definition may change.
CONFIGS = "ssl_config asr_config lid_config multi_config finetune_config".split()
#: What the tool itself sets; only who starts the run says what is trusted.
OWN = tuple(
    "stage stop_stage skip_stages datadir dumpdir expdir python "
    "trust_s3prl_files".split()
)
EXPECTATIONS = ("better", "worse", "higher", "lower", "equal")
#: What the seed of stages 0-6 and 9 is, whatever a cell's: all share their data.
DATA_SEED = 0
# Raised whenever cells measure something else than before: all are then run again.
_VERSION = 2
# Options of presets that change what is said of figures, and no figure.
_OF_PAGES = ("spread",)
_UNDIRECTED = tuple(name for name, kind in KINDS.items() if kind.better == "neither")
_KEYS = (
    "title source note defaults seeds minutes data_minutes data cell configs "
    "environment systems baseline claims transfer"
).split()
_OPTIONS = {option.name for option in fields(Options)}
_REFERENCE = re.compile(r"\{cell:([^{}]+)\}")
# What stands for a reference in planned options.
_PLANNED = re.compile(r"<cell (\w+)>")


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


@dataclass(frozen=True)
class Data:
    """Results of stages 0-6 and 9 that cells share.

    ``key`` names its directory; ``needs`` are keys of the cells that it reads.
    """

    key: str
    options: Mapping[str, Any]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One training of one system with one seed.

    Two definitions that ask for the same training have the same cell, which runs once.

    Attributes:
        key: Names its directory; a hash of everything below but ``system``.
        seed: Of stages 7 to 12.
        options: Of run.sh, those of the data included.
        configs: Content of the config files, by option.
        environment: Variables of its process.
        needs: Keys of the cells that it reads.
    """

    key: str
    system: str
    seed: int
    data: Data
    options: Mapping[str, Any]
    configs: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, str]
    needs: tuple[str, ...]
    minutes: float

    @property
    def label(self) -> str:
        """Name in messages."""
        return f"{self.system}, seed {self.seed}"


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


def plan_cells(definition: Definition, recipe: str | Path) -> list[Cell]:
    """Expand a definition, each cell after those it reads.

    In every option and config ``{cell:SYSTEM}`` stands for the experiment directory of
    that system's cell with the same seed. Config files are looked for in ``recipe``,
    the directory of run.sh.

    Raises:
        RecipeError: A config file is missing, a reference names no cell or itself, or
            an option belongs under ``data``.
    """
    from espnet2_lamer.recipe.stages import ssl1

    # What the results of stages 0-6 and 9 depend on.
    shared = {name for stage in ssl1 if stage.shared for name in stage.options}
    # Of these only the value is checked, or they are no options of run.sh.
    shared -= {"seed", "allocation", "asr_layer", "lid_layer", "recluster"}
    shared |= {"preset", "corpus", "manifest", "dev_hours", "kmeans_hours"}
    for system in definition.systems.values():
        wrong = sorted(set(system.cell) & shared)
        if wrong:
            raise RecipeError(
                f"{definition.name}: systems.{system.name}: cell.{wrong[0]}: stages "
                "0-6 and 9, whose results cells share, depend on it; state it under "
                "data"
            )
    cells: dict[tuple[str, int], Cell] = {}
    # By seed first: an interrupted matrix then has whole columns to compare.
    for seed in sorted({s for one in definition.systems.values() for s in one.seeds}):
        for name, system in definition.systems.items():
            if seed in system.seeds:
                _add(definition, Path(recipe), name, seed, cells, ())
    return list(cells.values())


def _add(
    definition: Definition,
    recipe: Path,
    name: str,
    seed: int,
    cells: dict[tuple[str, int], Cell],
    above: tuple[str, ...],
) -> Cell:
    """Plan a cell after those it reads; ``above`` are the systems that read it."""
    if (name, seed) in cells:
        return cells[name, seed]
    if name in above:
        raise RecipeError(
            f"{definition.name}: systems.{name}: reads itself ({' -> '.join(above)})"
        )
    system = definition.systems.get(name)
    if system is None or seed not in system.seeds:
        raise RecipeError(
            f"{definition.name}: {{cell:{name}}}: found no system of this name with "
            f"seed {seed}, expected one of {', '.join(definition.systems)}"
        )

    def resolved(value: Any) -> tuple[Any, tuple[str, ...]]:
        """Put keys of cells into a value; return it and them."""
        keys: dict[str, None] = {}

        def key_of(other: str) -> str:
            key = _add(definition, recipe, other, seed, cells, (*above, name)).key
            keys[key] = None
            return f"<cell {key}>"

        return _map_text(value, _REFERENCE, key_of), tuple(keys)

    configs = {}
    for option, config in system.configs.items():
        try:
            content = read_yaml(recipe / str(config["file"]))
        except RecipeError as error:
            raise RecipeError(
                f"{definition.name}: systems.{name}: configs.{option}.file: {error}"
            ) from None
        configs[option] = merge(content, config.get("change") or {})
    options, needs = resolved({"seed": DATA_SEED, **system.data})
    data = Data(_data_key(options, recipe), options, needs)
    keyed, needs = resolved({"options": system.cell, "configs": configs})
    content = {"version": _VERSION, "seed": seed, "data": data.key, **keyed}
    if system.environment:
        content["environment"] = dict(system.environment)
    cell = Cell(
        key=sha256_value(content)[:12],
        system=name,
        seed=seed,
        data=data,
        options={**data.options, **keyed["options"]},
        configs=keyed["configs"],
        environment=system.environment,
        needs=needs,
        minutes=system.minutes,
    )
    cells[name, seed] = cell
    return cell


def _data_key(options: Mapping[str, Any], recipe: Path) -> str:
    content: dict[str, Any] = {"version": 1, "options": dict(options)}
    preset = recipe / "conf" / "presets" / f"{options.get('preset', 'mini')}.sh"
    if preset.is_file():
        settings = read_preset(preset, _OPTIONS)
        content["preset"] = {k: v for k, v in settings.items() if k not in _OF_PAGES}
    # What the manifest says, not where it lies. A folder of audio is its path.
    manifest = recipe / str(options.get("manifest", ""))
    if manifest.is_file():
        content["options"]["manifest"] = sha256_file(manifest)
    return sha256_value(content)[:12]


def place(value: Any, directory_of: Callable[[str], str | Path]) -> Any:
    """Put directories in place of the cells' keys that planned options hold."""
    return _map_text(value, _PLANNED, lambda key: str(directory_of(key)))


def _map_text(
    value: Any, pattern: re.Pattern[str], change: Callable[[str], str]
) -> Any:
    """Replace a pattern, by its group, in all texts of nested mappings and lists."""
    if isinstance(value, Mapping):
        return {key: _map_text(part, pattern, change) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_map_text(part, pattern, change) for part in value]
    if isinstance(value, str):
        return pattern.sub(lambda match: change(match[1]), value)
    return value
