"""Options of a section: a dataclass whose fields become command-line options."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any


def option(default: Any, text: str, parse: Callable[[str], Any] | None = None) -> Any:
    """Return a dataclass field that knows its help text and its parser.

    Args:
        default: Value of a full run; a tuple is read as comma-separated values.
        text: Help text.
        parse: Turns the command line's string into a value (or into one item of a
            tuple); ``None`` takes the type of ``default``.
    """
    if parse is None:
        parse = type(default[0] if isinstance(default, tuple) else default)
    if isinstance(default, tuple):
        item = parse

        def parse(text: str) -> tuple:
            return tuple(item(part) for part in text.split(","))

    return dataclasses.field(default=default, metadata={"help": text, "parse": parse})


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "set by the device" if default is None else str(default)


def add_options(
    parser: argparse.ArgumentParser, section: str, title: str, options: type
) -> None:
    """Add ``--<section>_<field>`` for every field; absent ones stay unset."""
    group = parser.add_argument_group(f"{section}: {title}")
    for field in dataclasses.fields(options):
        text = field.metadata["help"].replace("%", "%%")  # argparse would format it
        group.add_argument(
            f"--{section}_{field.name}",
            type=field.metadata["parse"],
            default=argparse.SUPPRESS,
            metavar="X,Y" if isinstance(field.default, tuple) else "X",
            help=f"{text} (default: {_shown(field.default)})",
        )


def chosen(args: argparse.Namespace, section: str, base: Any) -> Any:
    """Return ``base`` with the fields that were given on the command line."""
    given = vars(args)
    names = [field.name for field in dataclasses.fields(base)]
    changes = {n: given[f"{section}_{n}"] for n in names if f"{section}_{n}" in given}
    return dataclasses.replace(base, **changes)
