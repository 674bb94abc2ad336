"""Cells: the trainings that a definition asks for.

Each is named by a hash of all that decides its result.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.experiments.definition import Definition, merge
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.fileio.hashing import sha256_file, sha256_value
from espnet2_lamer.recipe.declaration import read_preset
from espnet2_lamer.recipe.options import Options

#: What the seed of stages 0-6 and 9 is, whatever a cell's: all share their data.
DATA_SEED = 0
# Raised whenever cells measure something else than before: all are then run again.
_VERSION = 2
# Options of presets that change what is said of figures, and no figure.
_OF_PAGES = ("spread",)
_OPTIONS = {option.name for option in fields(Options)}
_REFERENCE = re.compile(r"\{cell:([^{}]+)\}")
# What stands for a reference in planned options.
_PLANNED = re.compile(r"<cell (\w+)>")


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
    weights = _weights(definition.given, Path(recipe))
    cells: dict[tuple[str, int], Cell] = {}
    # By seed first: an interrupted matrix then has whole columns to compare.
    for seed in sorted({s for one in definition.systems.values() for s in one.seeds}):
        for name, system in definition.systems.items():
            if seed in system.seeds:
                _add(definition, Path(recipe), name, seed, cells, (), weights)
    return list(cells.values())


def _add(
    definition: Definition,
    recipe: Path,
    name: str,
    seed: int,
    cells: dict[tuple[str, int], Cell],
    above: tuple[str, ...],
    weights: Mapping[str, str],
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
            above_it = (*above, name)
            key = _add(definition, recipe, other, seed, cells, above_it, weights).key
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
    data = Data(_data_key(options, recipe, weights), options, needs)
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


def _weights(given: Mapping[str, Any], recipe: Path) -> dict[str, str]:
    """Return the SHA-256 of the checkpoints that the user named, by what was named.

    Each is read once, whatever the number of cells, and none for the only reason that
    somebody's definition names it.
    """
    found = {}
    for name in sorted({"base", "teacher"} & given.keys()):
        source = str(given[name])
        if (recipe / source).exists():
            from espnet2_lamer.convert.load import source_sha256  # imports torch

            found[source] = source_sha256(recipe / source)
    return found


def _data_key(
    options: Mapping[str, Any], recipe: Path, weights: Mapping[str, str]
) -> str:
    content: dict[str, Any] = {"version": 1, "options": dict(options)}
    preset = recipe / "conf" / "presets" / f"{options.get('preset', 'mini')}.sh"
    if preset.is_file():
        settings = read_preset(preset, _OPTIONS)
        content["preset"] = {k: v for k, v in settings.items() if k not in _OF_PAGES}
    # What the manifest says, not where it lies. A folder of audio is its path.
    manifest = recipe / str(options.get("manifest", ""))
    if manifest.is_file():
        content["options"]["manifest"] = sha256_file(manifest)
    # Checkpoints likewise: another training may have written there.
    for name in ("base", "teacher"):
        if str(options.get(name)) in weights:
            content["options"][name] = weights[str(options[name])]
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
