"""Options of a recipe, each declared once: a dataclass field with its help and checks.

The command line, ``--help``, presets, validation and the options of stages all come
from the fields. A preset is ``conf/presets/NAME.sh``: lines ``option=value`` as bash
would read them, which are never executed.
"""

import argparse
import dataclasses
import functools
import logging
import re
import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_type_hints

from espnet2_lamer.errors import RecipeError

#: Default of an option that every preset sets.
BY_PRESET = object()
HELP_WIDTH = 90
#: Headings of ``--help``, in order.
GENERAL, DATA, MODELS = "General", "Data", "Models"
EVALUATION, PUBLISHING = "Evaluation", "Publishing"


def option(
    text: str,
    default: Any = BY_PRESET,
    *,
    group: str = GENERAL,
    choices: Sequence[str] = (),
    least: float | None = None,
    empty: str = "none",
    exists: bool = False,
) -> Any:
    """Declare an option as a dataclass field; its annotation says how it is read.

    Args:
        text: What ``--help`` says.
        default: Value where neither preset nor command line give one.
        group: Under which heading ``--help`` lists it.
        choices: Values that it, or each of its words, may have.
        least: Least value of a number.
        empty: What an empty value means, for ``--help``.
        exists: Whether it, or each of its words, is a file that must be there, if
            somebody named it: of a default the stage that reads it says so.
    """
    about = {"text": text, "default": default, "group": group, "choices": choices}
    about |= {"least": least, "empty": empty, "exists": exists}
    return dataclasses.field(metadata=about)


data_option = functools.partial(option, group=DATA)
model_option = functools.partial(option, group=MODELS)
head_option = functools.partial(option, group=EVALUATION)
upload_option = functools.partial(option, group=PUBLISHING)


def flag(text: str) -> bool:
    """Read ``true`` or ``false``."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")
    return text == "true"


def _layer(text: str) -> int | str:
    if text != "all" and not re.fullmatch(r"-?\d+", text):
        raise argparse.ArgumentTypeError(f"expected a number or all, found {text!r}")
    return text if text == "all" else int(text)


def _words(kind: Callable[[str], Any]) -> Callable[[str], list]:
    def read(text: str) -> list:
        return [kind(word) for word in text.split()]

    read.__name__ = f"list of {kind.__name__}"  # argparse names it in errors
    return read


def _pairs(text: str) -> dict[str, str]:
    """Read ``eng=char cmn=pinyin``; what lacks the ``=`` has an empty value."""
    return {key: value for key, _, value in (w.partition("=") for w in text.split())}


#: How a value is read, by the field's annotation.
READERS: Mapping[Any, Callable[[str], Any]] = {
    **{kind: kind for kind in (int, float, str, Path)},
    bool: flag,
    int | str: _layer,
    list[str]: _words(str),
    list[int]: _words(int),
    list[float]: _words(float),
    dict[str, str]: _pairs,
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str):
        """Exit with 2."""
        self.exit(2, f"{self.prog}: {message}; see ./{self.prog} --help\n")


def get_parser(options: type) -> argparse.ArgumentParser:
    """Return the parser of a recipe's options; those not given are left out."""
    parser = _Parser(
        prog="run.sh",
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    hints = get_type_hints(options)
    for field in dataclasses.fields(options):
        parser.add_argument(
            f"--{field.name}",
            type=READERS[hints[field.name]],
            help=field.metadata["text"].replace("%", "%%"),
        )
    parser.add_argument("--help", "-h", action="store_true", help="show the options")
    return parser


def parse(
    parser: argparse.ArgumentParser, options: type, cmd: Sequence[str], presets: Path
) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Read a command line over its preset over the declared defaults.

    ``--some-option`` is ``--some_option``.

    Returns:
        The value of every option, those that were given, and whether only help is
        wanted. A wrong option ends the program with code 2 and says what is wrong.

    Raises:
        RecipeError: The preset holds something else than options.
    """
    given = vars(parser.parse_args([_underscored(word) for word in cmd]))
    helps = given.pop("help", False)
    values = {
        field.name: field.metadata["default"] for field in dataclasses.fields(options)
    }
    name = given.get("preset", values["preset"])
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        parser.error(f"--preset {name}: expected a name in {presets}")
    path = presets / f"{name}.sh"
    if not path.is_file() and not helps:
        parser.error(f"--preset {name}: {path} not found")
    texts = read_preset(path, set(values)) if path.is_file() else {}
    pairs = [f"--{key}={text}" for key, text in texts.items()]
    values |= vars(parser.parse_args(pairs)) | {"preset": name} | given
    missing = [key for key, value in values.items() if value is BY_PRESET]
    if missing and not helps:
        parser.error(f"--{missing[0]}: found no value; {path} does not set it")
    return values, given, helps


def _underscored(word: str) -> str:
    name, equals, value = word.partition("=")
    if not name.startswith("--"):
        return word
    return "--" + name[2:].replace("-", "_") + equals + value


def read_preset(path: Path, known: set[str]) -> dict[str, str]:
    """Read the lines ``option=value`` of a preset.

    Raises:
        RecipeError: A line is something else, or names no option.
    """
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        name, equals, value = words[0].partition("=")
        if not equals or len(words) > 1 or {"$", "`"} & {*line} or name not in known:
            raise RecipeError(
                f"{path}:{number}: found {line.strip()!r}, expected a line "
                'option="value" with an option of ./run.sh --help'
            )
        found[name] = value
    return found


def refused(name: str, found: object, expected: str) -> RecipeError:
    """Return the error of an option's value."""
    return RecipeError(f"--{name}: found {found}, expected {expected}")


def give_way(options: Any, name: str, value: Any, to: str) -> bool:
    """Replace a preset's value that contradicts what the user gave, with a line.

    Returns:
        Whether it gave way: what was given itself never does.
    """
    if name in options.given or to not in options.given:
        return False
    before, after = as_text(getattr(options, name)), as_text(value) or "none"
    text = "--%s: %s of the preset gives way to --%s %s: %s"
    logging.warning(text, name, before, to, as_text(options.given[to]), after)
    setattr(options, name, value)
    return True


def check(values: Any) -> None:
    """Check what the declarations say of an object of options.

    Raises:
        RecipeError: Naming the option, what was found and what is expected.
    """
    for field in dataclasses.fields(values):
        name, value, about = field.name, getattr(values, field.name), field.metadata
        if about["choices"]:
            words = value if isinstance(value, list) else [value]
            unknown = [word for word in words if word not in about["choices"]]
            if unknown or not words:
                found = repr(unknown[0] if unknown else "none")
                some = "some" if isinstance(value, list) else "one"
                raise refused(name, found, f"{some} of {', '.join(about['choices'])}")
        if about["least"] is not None and value < about["least"]:
            raise refused(name, f"{value:g}", f"{about['least']:g} or more")
        named = about["exists"] and value != about["default"]
        for path in value if isinstance(value, list) else [value]:
            if named and not Path(path).is_file():
                raise RecipeError(f"--{name}: {path} not found")


def as_text(value: Any) -> str:
    """Write a value as the command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return " ".join(f"{key}={text}" for key, text in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(as_text, value))
    if isinstance(value, float) and value == float(f"{value:g}"):
        return f"{value:g}"
    return str(value)


def as_arguments(**values: Any) -> list[str]:
    """Write ESPnet's options as a command line; a list is several values of one."""
    words: list[str] = []
    for name, value in values.items():
        several = value if isinstance(value, list) else [value]
        words += [f"--{name}", *map(as_text, several)]
    return words


def data_arguments(
    part: str, data: Mapping[Path, str], shapes: Sequence[Path]
) -> list[str]:
    """Name files of ESPnet's ``train`` or ``valid`` set: ``name,type`` by path."""
    words: list[str] = []
    for path, kind in data.items():
        words += [f"--{part}_data_path_and_name_and_type", f"{path},{kind}"]
    for path in shapes:
        words += [f"--{part}_shape_file", str(path)]
    return words


def help_text(
    options: type, values: Mapping[str, Any], about: str, titles: Mapping[int, str]
) -> str:
    """Return what ``./run.sh --help`` shows, values in brackets."""
    lines = ["usage: ./run.sh [--option value] ...", "", *textwrap.wrap(about, 88)]
    lines += ["", "Stages"]
    half = (len(titles) + 1) // 2
    cells = [f"{number:>2}  {title}" for number, title in titles.items()]
    for left, right in zip_longest(cells[:half], cells[half:], fillvalue=""):
        lines.append(f"  {left:<38}{right}".rstrip())
    fields = dataclasses.fields(options)
    width = max(len(field.name) for field in fields) + 5
    for group in (GENERAL, DATA, MODELS, EVALUATION, PUBLISHING):
        chosen = [field for field in fields if field.metadata["group"] == group]
        lines += ["", group] if chosen else []
        for field in chosen:
            value = values[field.name]
            shown = "set by the preset" if value is BY_PRESET else as_text(value)
            text = f"{field.metadata['text']} ({shown or field.metadata['empty']})"
            start = f"  --{field.name}".ljust(width)
            lines += textwrap.wrap(
                text,
                HELP_WIDTH,
                initial_indent=start,
                subsequent_indent=" " * width,
                break_long_words=False,
                break_on_hyphens=False,
            )
    return "\n".join(lines) + "\n"
