"""Docstrings name things of this package by their last name, or where they are public.

A name that is not documented but exists (a constant, something private, another
library's) stays text. A name that does not exist is a warning, and so an error.
"""

import builtins
from collections.abc import Iterable
from functools import cache
from importlib import import_module

from docutils import nodes
from sphinx.util.nodes import make_refnode

# Names that modules import for type checkers only.
_ONLY_TYPES = {
    "ArrayLike",
    "Axes",
    "AxesImage",
    "Figure",
    "NDArray",
    "Picture",
    "Tensor",
}


def _resolve(app, env, node, contnode) -> nodes.Node | None:
    if node.get("refdomain") != "py":
        return None
    # Sphinx splits some annotations at their commas.
    target = node["reftarget"].partition("[")[0]
    objects = env.get_domain("py").objects
    found = _documented(objects, target)
    if len(found) == 1:
        (full,) = found
        entry = objects[full]
        return make_refnode(
            app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, full
        )
    owner, _, _ = target.rpartition(".")
    places = {full.removesuffix(f".{owner}") for full in _documented(objects, owner)}
    if module := node.get("py:module"):
        places |= {module, f"{module}.{node.get('py:class')}"}
    names = [target, *(f"{place}.{target}" for place in places)]
    return contnode if target in _ONLY_TYPES or any(map(_exists, names)) else None


def _documented(objects: Iterable[str], target: str) -> set[str]:
    """Full names that end with a name, or are of it and lie deeper in its package."""
    scope, _, name = target.rpartition(".")
    if not name:
        return set()
    found = {full for full in objects if full.endswith(f".{target}")} or {
        full
        for full in objects
        if scope and full.startswith(f"{scope}.") and full.endswith(f".{name}")
    }
    # A name that its package gives on is the same thing as where it is defined.
    return found - {
        full
        for full in found
        if any(f.startswith(full.rpartition(".")[0] + ".") for f in found - {full})
    }


@cache
def _exists(name: str) -> bool:
    """Whether Python finds the name: the longest module in it, then attributes."""
    parts = name.split(".")
    if hasattr(builtins, name):
        return True
    for count in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:count]))
        except (ImportError, ValueError):
            continue
        try:
            for part in parts[count:]:
                found = getattr(found, part)
        except AttributeError:
            continue
        return True
    return False


def setup(app) -> dict[str, bool]:
    """Resolve what Sphinx could not."""
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
