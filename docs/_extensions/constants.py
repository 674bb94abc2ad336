"""Comments ``#: text`` of constants are text, also where they hold a colon.

Napoleon reads the first line of such a comment as ``type: description``.
"""


def _begin_with_an_empty_comment(app, what, name, obj, options, lines) -> None:
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]


def setup(app) -> dict[str, bool]:
    """Come before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", _begin_with_an_empty_comment, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
