"""What a run asks for must be what the stages that it leaves out were run with."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe.declaration import as_text
from espnet2_lamer.recipe.stage import Options, Stage

_SHOWN = 5


def check_agreement(
    stages: Sequence[Stage],
    chosen: Sequence[Stage],
    options: Options,
    recorded: Callable[[Stage], Mapping[str, Any]],
    intact: Callable[[Stage], bool],
) -> None:
    """Refuse a run that would go on with other options than it was given.

    Of a stage before the last one chosen every option counts, wherever its value comes
    from; of a later one those that were given and that no chosen stage reads. An option
    that was given for nothing is named in a warning.

    Args:
        stages: Every stage of the recipe.
        chosen: Those that are to run.
        options: The recipe's options.
        recorded: Returns what a stage was run with, by option.
        intact: Whether the results of a stage are still those.

    Raises:
        RecipeError: With both values, and the command that applies those given.
    """
    declared = {field.name for field in fields(options)}
    read = {name for stage in chosen for name in stage.made_with}
    idle = {name for name in options.given if name not in read}
    last = max((stage.number for stage in chosen), default=-1)
    found: dict[str, list[tuple[Stage, Any]]] = {}
    known: set[str] = set()
    for stage in stages:
        record = {} if stage in chosen else recorded(stage)
        names = stage.made_with & declared & {*record}
        known |= names
        counts = names if stage.number < last else names & idle
        other = [n for n in counts if record[n] != plain(getattr(options, n))]
        # What somebody put there instead was made with other options.
        for name in other if other and intact(stage) else ():
            found.setdefault(name, []).append((stage, record[name]))
    if found:
        raise RecipeError(_refusal(found, options))
    unread = idle - known
    readers = {n: s for s in reversed(stages) for n in s.made_with & unread}
    if readers:
        parts = [f"--{name} (stage {s.number})" for name, s in readers.items()]
        logging.warning("no stage of this run reads %s", ", ".join(sorted(parts)))


def plain(value: Any) -> Any:
    """Return a value as it is read back from a record: paths are text."""
    return json.loads(json.dumps(value, default=str))


def _refusal(found: Mapping[str, list[tuple[Stage, Any]]], options: Options) -> str:
    parts = []
    for name in sorted(found, key=lambda name: (name not in options.given, name)):
        stage, old = found[name][0]
        source = "" if name in options.given else ", which was not given here"
        parts.append(
            f"--{name}: found {_text(getattr(options, name))}{source}, but stage "
            f"{stage.number} ({stage.title}) was run with {_text(old)}"
        )
    numbers = {stage.number for pairs in found.values() for stage, _ in pairs}
    changes: dict[str, Any] = {"stage": min(numbers | {options.stage})}
    if max(numbers) > options.stop_stage:
        changes["stop_stage"] = max(numbers)
    kept = [number for number in options.skip_stages if number not in numbers]
    changes["skip_stages"] = kept or None
    more = "; ..." if len(parts) > _SHOWN else ""
    old = {name: pairs[0][1] for name, pairs in found.items()}
    return (
        f"{'; '.join(parts[:_SHOWN])}{more}. This run would leave that out. To apply "
        f"it:\n{options.command(**changes)}\nTo go on with what is there:\n"
        f"{options.command(**old)}"
    )


def _text(value: Any) -> str:
    return as_text(value) or "none"
