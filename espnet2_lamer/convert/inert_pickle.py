"""Read a torch file that holds objects of unknown classes, running nothing of it.

torch's ``weights_only`` unpickler builds tensors and plain containers and refuses all
else. Here stand-ins take the place of other classes, keep what they are given and do
nothing: neither code of the file nor a module that it names is imported or called. What
torch blocks even then (``os``, ``sys``) stays refused.
"""

import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from espnet2_lamer.errors import RecipeError, short_reason

ZIP_MAGIC = b"PK\x03\x04"
# Before its zip format, torch wrote a magic number, a protocol version, facts about
# the system, the object, and the keys of the storages that follow.
LEGACY_PICKLES = 5


class Inert:
    """What stands in for an object of the file.

    Attributes:
        args: Arguments of its constructor, or of the function that was to make it.
        state: What ``__setstate__`` or ``__dict__`` was to get; ``None`` without one.
    """

    state: Any = None

    def __new__(cls, *args: Any) -> "Inert":
        """Keep the arguments; pickle does not always call ``__init__``."""
        stand_in = super().__new__(cls)
        stand_in.args = args
        return stand_in

    def __setstate__(self, state: Any) -> None:
        self.state = state


# The unpickler fills exact dicts and lists only; these are read as such.
PLAIN = {"collections.defaultdict": lambda *_: {}, "collections.deque": lambda *_: []}


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as handle:
        return handle.read(len(ZIP_MAGIC)) == ZIP_MAGIC


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    if not _is_zip(path):
        with open(path, "rb") as handle:
            for _ in range(LEGACY_PICKLES):
                yield handle
        return
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith("/data.pkl"):
                with archive.open(name) as handle:
                    yield handle


def global_names(path: Path) -> set[str]:
    """Names of all classes and functions that a torch file refers to.

    The instructions of its pickles are listed, not followed.
    """
    names = set()
    handle = None
    for handle in _pickles(path):
        for opcode, argument, _ in pickletools.genops(handle):
            if opcode.name == "GLOBAL":
                # Protocol 2 has Python 2's names for some; torch translates them.
                module, _, name = argument.partition(" ")
                names.add(f"{module}.{name}")
                module, name = NAME_MAPPING.get(
                    (module, name), (IMPORT_MAPPING.get(module, module), name)
                )
                names.add(f"{module}.{name}")
    if handle is None:
        raise ValueError("a zip file without data.pkl, not one that torch.save wrote")
    return names


@contextmanager
def _only_stand_ins(names: set[str]) -> Iterator[None]:
    """Let the unpickler build stand-ins and nothing that others have registered.

    Packages register what their own files need (numpy's scalars, for one). That would
    be called with stand-ins as arguments.
    """
    stand_ins = [(PLAIN.get(name) or type(name, (Inert,), {}), name) for name in names]
    registered = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals(stand_ins):
            yield
    finally:
        torch.serialization.add_safe_globals(registered)


def load_inert(path: Path, tensors: bool = True) -> Any:
    """Return the object that ``torch.save`` wrote, foreign objects as :class:`Inert`.

    The file may be in torch's zip format or in the one before it. Without ``tensors``
    they have their shapes but no values.

    Raises:
        RecipeError: It is damaged, or not built from plain data and such objects.
    """
    options = {"map_location": "cpu", "weights_only": True}
    try:
        with _only_stand_ins(global_names(path)):
            if not tensors:
                with torch.serialization.skip_data():
                    return torch.load(path, **options)
            # Mapped, an optimizer's state, twice the model, stays on the disk.
            return torch.load(path, mmap=_is_zip(path), **options)
    except Exception as error:  # a damaged file fails in many ways
        raise RecipeError(f"{path}: cannot be read ({short_reason(error)})") from error
