"""Cells: one training each, named by a hash of all that decides its result."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.experiments.definition import Definition, System, merge
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.fileio.hashing import sha256_file, sha256_value

# Raised whenever cells measure something else than before: all are then run again.
_VERSION = 1
# What the seed of stages 0-6 and 9 is, whatever a cell's: all share their data.
DATA_SEED = 0
_REFERENCE = re.compile(r"\{cell:([^{}]+)\}")


@dataclass(frozen=True)
class Data:
    """Results of stages 0-6 and 9 that cells share.

    Attributes:
        key: Names its directory.
        options: Options of run.sh.
        needs: Keys of the cells that it reads.
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
        system: Row of the table.
        seed: Seed of stages 7 to 12.
        data: What it is trained and tested on.
        options: Options of run.sh, those of the data included.
        configs: Content of the config files, by option.
        needs: Keys of the cells that it reads.
        minutes: Estimated time.
    """

    key: str
    system: str
    seed: int
    data: Data
    options: Mapping[str, Any]
    configs: Mapping[str, Mapping[str, Any]]
    needs: tuple[str, ...]
    minutes: float

    @property
    def label(self) -> str:
        """Name in messages."""
        return f"{self.system}, seed {self.seed}"


def plan_cells(definition: Definition, recipe: str | Path) -> list[Cell]:
    """Expand a definition, each cell after those it reads.

    In every option and config ``{cell:SYSTEM}`` stands for the experiment directory of
    that system's cell with the same seed.

    Args:
        definition: The experiment.
        recipe: Directory of run.sh, where config files are looked for.

    Raises:
        RecipeError: A config file is missing, a reference names no cell or itself, or
            an option belongs under ``data``.
    """
    _check_data_options(definition)
    cells: dict[tuple[str, int], Cell] = {}
    # By seed first: an interrupted matrix then has whole columns to compare.
    wanted = [
        (name, seed)
        for seed in sorted(
            {s for one in definition.systems.values() for s in one.seeds}
        )
        for name, system in definition.systems.items()
        if seed in system.seeds
    ]
    for name, seed in wanted:
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

    def key_of(other: str) -> str:
        found = _add(definition, recipe, other, seed, cells, (*above, name))
        return found.key

    configs = _configs(definition, system, recipe)
    data = _data(system, recipe, key_of)
    keyed = map_text({"options": {**system.cell}, "configs": configs}, key_of)
    needs = tuple(dict.fromkeys(_references({"o": system.cell, "c": configs}, key_of)))
    content = {"version": _VERSION, "seed": seed, "data": data.key, **keyed}
    cell = Cell(
        key=sha256_value(content)[:12],
        system=name,
        seed=seed,
        data=data,
        options={**data.options, **map_text(system.cell, key_of)},
        configs=map_text(configs, key_of),
        needs=needs,
        minutes=system.minutes,
    )
    cells[name, seed] = cell
    return cell


def _data(system: System, recipe: Path, key_of: Callable[[str], str]) -> Data:
    options = map_text({"seed": DATA_SEED, **system.data}, key_of)
    needs = tuple(dict.fromkeys(_references(system.data, key_of)))
    preset = recipe / "conf" / "presets" / f"{options.get('preset', 'mini')}.sh"
    content = {"version": 1, "options": dict(options)}
    if preset.is_file():
        content["preset"] = sha256_file(preset)
    # What the manifest says, not where it lies. A folder of audio is its path.
    manifest = recipe / str(options.get("manifest", ""))
    if manifest.is_file():
        content["options"]["manifest"] = sha256_file(manifest)
    return Data(sha256_value(content)[:12], options, needs)


def _configs(
    definition: Definition, system: System, recipe: Path
) -> dict[str, dict[str, Any]]:
    read = {}
    for option, config in system.configs.items():
        path = recipe / str(config["file"])
        try:
            content = read_yaml(path)
        except RecipeError as error:
            raise RecipeError(
                f"{definition.name}: systems.{system.name}: configs.{option}.file: "
                f"{error}"
            ) from None
        read[option] = merge(content, config.get("change") or {})
    return read


def map_text(value: Any, key_of: Callable[[str], str]) -> Any:
    """Replace ``{cell:SYSTEM}`` in all texts of nested mappings and lists.

    Args:
        value: Plain values as YAML gives them.
        key_of: Maps a system to its cell's key, which is put in as ``<cell KEY>``.
    """
    if isinstance(value, Mapping):
        return {key: map_text(part, key_of) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [map_text(part, key_of) for part in value]
    if isinstance(value, str):
        return _REFERENCE.sub(lambda m: f"<cell {key_of(m[1])}>", value)
    return value


def place(value: Any, directory_of: Callable[[str], str | Path]) -> Any:
    """Replace the keys that :func:`map_text` left by directories.

    Args:
        value: Plain values.
        directory_of: Maps a cell's key to its experiment directory.
    """
    if isinstance(value, Mapping):
        return {key: place(part, directory_of) for key, part in value.items()}
    if isinstance(value, list):
        return [place(part, directory_of) for part in value]
    if isinstance(value, str):
        return re.sub(r"<cell (\w+)>", lambda m: str(directory_of(m[1])), value)
    return value


def _references(value: Any, key_of: Callable[[str], str]) -> list[str]:
    if isinstance(value, Mapping):
        return [k for part in value.values() for k in _references(part, key_of)]
    if isinstance(value, list | tuple):
        return [k for part in value for k in _references(part, key_of)]
    if isinstance(value, str):
        return [key_of(name) for name in _REFERENCE.findall(value)]
    return []


def data_options() -> set[str]:
    """Options of run.sh that the results of stages 0-6 and 9 depend on."""
    from espnet2_lamer.recipe.stages import ssl1

    shared = {name for stage in ssl1 if stage.shared for name in stage.options}
    # Of these only the value is checked, or they are no options of run.sh.
    return shared - {"seed", "allocation", "asr_layer", "lid_layer"} | {
        *("preset", "corpus", "manifest", "dev_hours", "kmeans_hours")
    }


def _check_data_options(definition: Definition) -> None:
    shared = data_options()
    for system in definition.systems.values():
        wrong = sorted(set(system.cell) & shared)
        if wrong:
            raise RecipeError(
                f"{definition.name}: systems.{system.name}: cell.{wrong[0]}: stages "
                "0-6 and 9, whose results cells share, depend on it; state it under "
                "data"
            )
