"""A recipe: its options and its stages, each an entry of a table.

To add a stage, write a function that takes the options and add a :class:`Stage` to the
recipe's table; ``--help``, the range of stages, records and ``--print_commands`` follow
from that.
"""

import importlib
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from espnet2_lamer.data.segmented_rows import LISTING
from espnet2_lamer.recipe.declaration import as_text

# Stages of a recipe receive that recipe's own options.
Options = Any
Work = Callable[[Options], "Sequence[Command] | None"]


@dataclass(frozen=True)
class Command:
    """A command line: a module of ``espnet2_lamer.bin`` and its arguments."""

    program: str
    arguments: tuple[str, ...]

    def text(self, python: str = "python") -> str:
        """Return what a shell runs."""
        program = ["-m", f"espnet2_lamer.bin.{self.program}"]
        return shlex.join([*(python or "python").split(), *program, *self.arguments])

    def run(self) -> None:
        """Run it in this process."""
        module = importlib.import_module(f"espnet2_lamer.bin.{self.program}")
        module.main(list(self.arguments))


def command(program: str, **arguments: Any) -> Command:
    """Make a command; arguments that are None, empty or False are left out."""
    words: list[str] = []
    for name, value in arguments.items():
        if value is not None and value is not False and value != "":
            words += [f"--{name}", as_text(value)]
    return Command(program, tuple(words))


def work(module: str, function: str, *arguments: Any) -> Work:
    """Return a function of this package, imported when it is called.

    A run in which every stage is done then ends in a second or two. ``arguments``
    follow the options.
    """

    def run(options: Options) -> None:
        found = importlib.import_module(f"espnet2_lamer.recipe.{module}")
        getattr(found, function)(options, *arguments)

    return run


@dataclass(frozen=True)
class Stage:
    """One numbered step of a recipe.

    Attributes:
        number: Public number.
        name: Public name.
        title: What it does, in a few words.
        depends_on: Names of the options its result depends on, with spaces between.
        run: Does the work, or returns the commands that do; called again after a kill,
            it goes on.
        inputs: Files it reads; their content is part of what "unchanged" means.
        added: Inputs that records of earlier versions lack: taken for unchanged there,
            and filled in. Those that do not exist are none.
        outputs: Files that exist when it is done.
        audio: Tables whose audio it reads, see
            :func:`~espnet2_lamer.fileio.prints.listed_files`; what these files hold is
            an input, too. A table that is not there counts for nothing.
        audio_after: Tables that it writes; its result stands for what the files hold
            that they name.
        keep: Directories whose content is moved aside, never overwritten, when the
            stage runs with other inputs than before.
        variant: Suffix of the stage's record where the options name one of several
            results that stand side by side; each is done or not by itself.
        repeat: Whether it runs again though nothing changed.
        checks: Names of more options: it looks at them, its result is the same.
        shared: Whether its result is that of all pretrainings.
        together: Whether runs may do it at once, its parts having locks of their own.
        by_commands: Whether ``run`` returns commands.
    """

    number: int
    name: str
    title: str
    depends_on: str
    run: Work
    inputs: Callable[[Options], list[Path]] = lambda options: []
    added: Callable[[Options], list[Path]] = lambda options: []
    outputs: Callable[[Options], list[Path]] = lambda options: []
    audio: Callable[[Options], list[Path]] = lambda options: []
    audio_after: Callable[[Options], list[Path]] = lambda options: []
    keep: Callable[[Options], list[Path]] = lambda options: []
    variant: Callable[[Options], str] = lambda options: ""
    repeat: Callable[[Options], bool] = lambda options: False
    checks: str = ""
    shared: bool = False
    together: bool = False
    by_commands: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that make it run again."""
        return tuple(f"{self.depends_on} {self.checks}".split())

    @property
    def made_with(self) -> set[str]:
        """Names of the options its result depends on."""
        return {*self.depends_on.split()}


@dataclass(frozen=True)
class Recipe:
    """Stages by number, and what else a run.sh is about.

    ``settle`` checks options that their declarations cannot check alone, and fills in
    what follows from others; ``stages_of`` gives the stages of some options.

    Raises:
        ValueError: A stage depends on an option that does not exist.
    """

    name: str
    about: str
    options: type
    presets: Path
    settle: Callable[[Options], None]
    stages: tuple[Stage, ...]
    stages_of: Callable[[Options], Sequence[Stage]]

    def __post_init__(self) -> None:
        """Check the names of options."""
        known = {field.name for field in fields(self.options)} | {*dir(self.options)}
        for stage in self.stages:
            if unknown := sorted({*stage.options} - known):
                raise ValueError(f"stage {stage.number}: no option {unknown}")

    def __iter__(self) -> Iterator[Stage]:
        """Iterate over the stages by number."""
        return iter(self.stages)

    def __getitem__(self, name: str) -> Stage:
        """Find a stage by its name."""
        return {stage.name: stage for stage in self.stages}[name]

    def by_hand(self, stage: Stage, options: Options) -> Sequence[Command]:
        """Return the commands that do a stage's work."""
        if stage.by_commands:
            return stage.run(options)
        leave = ("stage", "stop_stage", "skip_stages", "print_commands", "python")
        given = options.given.items()
        words = [f"--{k}={as_text(v)}" for k, v in given if k not in leave]
        return [Command("stage", (self.name, stage.name, *words))]


def below(folder: Path, directories: Iterable[str], names: Iterable[str]) -> list[Path]:
    """Files of the same names in each of several directories."""
    names = list(names)
    return [folder / directory / name for directory in directories for name in names]


def with_those_there(needed: Sequence[Path], others: Sequence[Path]) -> list[Path]:
    """``needed``, and of ``others`` those that exist."""
    return list(dict.fromkeys([*needed, *filter(Path.is_file, others)]))


def wav_scps(paths: Iterable[Path]) -> list[Path]:
    """Those of the paths that list audio."""
    return [path for path in paths if path.name == "wav.scp"]


def left_out(options: Options) -> list[Path]:
    """What was left out, or cut: a file that was repaired comes back."""
    names = options.corpus.split()
    found = [options.datadir / f"{name}.left_out.tsv" for name in names]
    return (
        found if options.segmentation is None else [*found, options.datadir / LISTING]
    )


def manifest_files(options: Options) -> list[Path]:
    """The files that the manifest is read from."""
    return [path for path in options.manifest_parts if not path.is_dir()]


def manifest_folders(options: Options) -> list[Path]:
    """The folders that it is read from."""
    return [path for path in options.manifest_parts if path.is_dir()]


def corpus_sets(options: Options) -> list[Path]:
    """Prepared speech of every language."""
    sets = [f"train_{lang}" for lang in options.langs]
    return below(options.datadir, sets, ("wav.scp", "utt2lang"))


def results(options: Options) -> list[Path]:
    """Tables."""
    return [options.results / n for n in ("RESULTS.md", "results.json", "results.csv")]
