"""Files from outside: data of bounded size, and one kind of error for all damage."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from espnet2_lamer.errors import RecipeError, short_reason
from espnet2_lamer.fileio.checksum import check_file

# A config with a vocabulary of 250,000 pieces has 6 MB.
MAX_YAML_BYTES = 16 * 2**20
# With every alias written out; the sum of its strings, and 16 for each node.
MAX_YAML_EXPANDED = 64 * 2**20


@contextmanager
def clear_errors(source: object) -> Iterator[None]:
    """Raise ``RecipeError`` for whatever a damaged file makes libraries raise.

    Readers of formats fail on damage with dozens of types; the message names the type,
    and the file ``source``. Inside this block, keep to reading and building from what
    it says: a mistake of our own would be blamed on the file.
    """
    try:
        yield
    except RecipeError as error:
        if str(source) in str(error):
            raise
        raise RecipeError(f"{source}: {error}") from error
    except OSError as error:  # a full disk is no damage
        raise RecipeError(f"{source}: cannot be read or unpacked ({error})") from error
    except Exception as error:
        raise RecipeError(
            f"{source}: damaged, or not made by this package "
            f"({type(error).__name__}: {short_reason(error)}); fetch it again"
        ) from error


def check_weights(path: str | Path, map_location: str = "meta") -> Any:
    """Return what a torch file holds: tensors, and plain values and containers.

    ``map_location`` is torch's; ``meta`` leaves the tensors' values out, for a look at
    files that others' code is to read: ours is clearer about what is wrong.

    Raises:
        RecipeError: It differs from the checksum beside it, is damaged otherwise, or
            would have to be unpickled.
    """
    import torch

    check_file(path)
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # the unpickler raises many kinds
        raise RecipeError(f"{path}: cannot be read ({short_reason(error)})") from error


def replace_texts(value: Any, change: Callable[[str, str], Any], key: str = "") -> Any:
    """Return plain YAML with ``change(text, key)`` in place of every text in it.

    A key is ``model_conf.names[2]``; that of ``value`` comes before it.
    """
    if isinstance(value, Mapping):
        return {
            name: replace_texts(part, change, f"{key}.{name}".lstrip("."))
            for name, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [
            replace_texts(part, change, f"{key}[{number}]")
            for number, part in enumerate(value)
        ]
    return change(value, key) if isinstance(value, str) else value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read ``key: value`` lines and refuse all else; an empty file is no keys."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from error
    values = parse_yaml(content, path)
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise RecipeError(
            f"{path}: found {type(values).__name__}, expected a mapping: 'key: value' "
            "lines"
        )
    return values


def parse_yaml(content: bytes | str, source: object) -> Any:
    """Read plain YAML whose aliases do not expand to more than they should.

    An alias costs nothing here, but whoever walks through the value later pays for
    every repetition: nine nested lists of nine aliases are 400 million entries.

    Raises:
        RecipeError: It is no YAML, has tags of Python, or is absurdly large.
    """
    if len(content) > MAX_YAML_BYTES:
        raise RecipeError(
            f"{source}: {len(content)} bytes of YAML, expected at most {MAX_YAML_BYTES}"
        )
    try:
        loader = yaml.SafeLoader(content)
        try:
            node = loader.get_single_node()
            size = 0 if node is None else _expanded(node, {})
            if size <= MAX_YAML_EXPANDED:
                return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except Exception as error:  # numbers, dates and nesting raise their own
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"{source}: not valid YAML: {reason}; repair the line that it names"
        ) from error
    raise RecipeError(
        f"{source}: its aliases expand to more than {MAX_YAML_EXPANDED} bytes; refused"
    )


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """Size of a node with every alias in it written out."""
    if isinstance(node, yaml.ScalarNode):
        return 16 + len(node.value)
    size = known.get(id(node))
    if size is None:
        known[id(node)] = MAX_YAML_EXPANDED + 1  # a node inside itself
        size = 16
        for child in node.value:
            parts = child if isinstance(child, tuple) else (child,)
            size += sum(_expanded(part, known) for part in parts)
        known[id(node)] = size
    return size
