"""A recipe: its options and its stages, each a decorated function.

To add a stage, write a function in the module of the recipe's stages and decorate it;
``--help``, the range of stages, records and ``--print_commands`` follow from that.
"""

import importlib
import importlib.util
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from espnet2_lamer.recipe.declaration import as_text

# Stages of a recipe receive that recipe's own options.
Options = Any


@dataclass(frozen=True)
class Command:
    """A command line: a module of ``espnet2_lamer.bin`` or a script, and arguments."""

    program: str
    arguments: tuple[str, ...]

    def text(self, python: str = "python") -> str:
        """Return what a shell runs."""
        program = [self.program]
        if not self.program.endswith(".py"):
            program = ["-m", f"espnet2_lamer.bin.{self.program}"]
        return shlex.join([*(python or "python").split(), *program, *self.arguments])

    def run(self) -> None:
        """Run it in this process."""
        if self.program.endswith(".py"):
            spec = importlib.util.spec_from_file_location("script", self.program)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(f"espnet2_lamer.bin.{self.program}")
        module.main(list(self.arguments))


def command(program: str, **arguments: Any) -> Command:
    """Make a command; arguments that are None, empty or False are left out."""
    words: list[str] = []
    for name, value in arguments.items():
        if value is not None and value is not False and value != "":
            words += [f"--{name}", as_text(value)]
    return Command(program, tuple(words))


@dataclass(frozen=True)
class Stage:
    """One numbered step of a recipe.

    Attributes:
        number: Public number.
        title: What it does, in a few words.
        options: Names of the options its result depends on.
        inputs: Files it reads; their content is part of what "unchanged" means.
        outputs: Files that exist when it is done.
        run: Does the work, or returns the commands that do; called again after a kill,
            it goes on.
        name: Name of the function.
        keep: Directories whose content is moved aside, never overwritten, when the
            stage runs with other inputs than before.
        variant: Suffix of the stage's record where the options name one of several
            results that stand side by side; each is done or not by itself.
        repeat: Whether it runs again though nothing changed.
        shared: Whether its result is that of all pretrainings.
        by_commands: Whether ``run`` returns commands.
    """

    number: int
    title: str
    options: tuple[str, ...]
    inputs: Callable[[Options], list[Path]]
    outputs: Callable[[Options], list[Path]]
    run: Callable[[Options], Sequence[Command] | None]
    name: str = ""
    keep: Callable[[Options], list[Path]] = lambda options: []
    variant: Callable[[Options], str] = lambda options: ""
    repeat: Callable[[Options], bool] = lambda options: False
    shared: bool = False
    by_commands: bool = False


def nothing(options: Options) -> list[Path]:
    """No files."""
    return []


@dataclass
class Recipe:
    """Stages by number, and what else a run.sh is about.

    Attributes:
        name: ``ssl1`` or ``asr1``.
        about: First lines of ``--help``.
        options: Dataclass of its options.
        presets: Folder of its presets.
        stages_of: Gives the stages of some options, where these are not all.
        settle: Checks options that the declarations cannot check alone, and fills in
            what follows from others.
    """

    name: str
    about: str
    options: type
    presets: Path
    settle: Callable[[Options], None]

    def __post_init__(self) -> None:
        """Start without stages."""
        self._stages: dict[int, Stage] = {}
        self.stages_of: Callable[[Options], list[Stage]] = lambda options: [*self]

    def stage(
        self,
        number: int,
        title: str,
        options: str = "",
        *,
        inputs: Callable[[Options], list[Path]] = nothing,
        outputs: Callable[[Options], list[Path]] = nothing,
        **more: Any,
    ) -> Callable:
        """Make the decorated function a stage; arguments as :class:`Stage` has them.

        ``options`` are names in one text, with spaces between.

        Raises:
            ValueError: The number is taken, or an option does not exist.
        """
        known = {field.name for field in fields(self.options)} | {*dir(self.options)}
        names = tuple(options.split())
        unknown = sorted(set(names) - known)
        if number in self._stages or unknown:
            raise ValueError(f"stage {number}: taken, or no option {unknown}")

        def add(run: Callable) -> Callable:
            self._stages[number] = Stage(
                number, title, names, inputs, outputs, run, run.__name__, **more
            )
            return run

        return add

    def commands(self, *args: Any, **more: Any) -> Callable:
        """Make the decorated function, which returns commands, a stage."""
        return self.stage(*args, by_commands=True, **more)

    def __iter__(self) -> Iterator[Stage]:
        """Iterate over the stages by number."""
        return iter(self._stages[number] for number in sorted(self._stages))

    def __getitem__(self, name: str) -> Stage:
        """Find a stage by the name of its function."""
        for stage in self:
            if stage.name == name:
                return stage
        raise KeyError(f"{self.name}: no stage {name}")

    def replaced(self, name: str, /, **changes: Any) -> list[Stage]:
        """Return the stages up to ``name``, and that one with changes in its place."""
        last = self[name]
        before = [stage for stage in self if stage.number < last.number]
        return [*before, replace(last, **changes)]

    def by_hand(self, stage: Stage, options: Options, given: dict) -> Sequence[Command]:
        """Return the commands that do a stage's work.

        Args:
            stage: One of the recipe's.
            options: With their values.
            given: Those that were given beside the preset, as they were given.
        """
        if stage.by_commands:
            return stage.run(options)
        leave = ("stage", "stop_stage", "skip_stages", "print_commands", "python")
        words = [f"--{k}={as_text(v)}" for k, v in given.items() if k not in leave]
        return [Command("stage", (self.name, stage.name, *words))]
