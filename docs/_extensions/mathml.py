"""Equations as MathML, which browsers draw themselves: no script, no network."""

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.errors import ExtensionError

# Sizes of delimiters, which MathML finds by itself.
_SIZES = re.compile(r"\\[bB]igg?[lrm]?(?![A-Za-z])")


def _mathml(node: nodes.Node, as_block: bool) -> str:
    try:
        return tex2mathml(_SIZES.sub("", node.astext()), as_block=as_block)
    except Exception as error:
        raise ExtensionError(f"{node.astext()!r} is no LaTeX: {error}") from error


def _inline(writer, node: nodes.math) -> None:
    writer.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def _block(writer, node: nodes.math_block) -> None:
    writer.body.append(writer.starttag(node, "div", CLASS="math"))
    writer.body.append(_mathml(node, as_block=True))
    writer.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app) -> dict[str, bool]:
    """Register the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
