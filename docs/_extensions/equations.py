"""Equations as pictures of paths (SVG): no script, no font and no network is needed."""

import re
from xml.etree import ElementTree

import ziamath
from docutils import nodes
from sphinx.errors import ExtensionError

# Identifiers of glyphs would repeat in a page with several equations.
ziamath.config.svg2 = False
# Sizes of delimiters, which ziamath finds by itself.
_SIZES = re.compile(r"\\[bB]igg?[lrm]?(?![A-Za-z])")
# A bar that stretches beside a sum grows without end, one that does not looks the same.
_BARS = re.compile(r"\\[lr]Vert(?![A-Za-z])")
# Units of a drawing per em: it grows with the text around it.
_EM = 20
# Height in em of what cannot have been meant.
_TOO_HIGH = 10


def _svg(node: nodes.Node, inline: bool) -> str:
    tex = " ".join(_BARS.sub(r"\\|", _SIZES.sub("", node.astext())).split())
    if not inline and "&" in tex and r"\begin" not in tex:
        tex = rf"\begin{{aligned}} {tex} \end{{aligned}}"
    try:
        drawn = ziamath.Latex(tex, size=_EM, color="currentColor", inline=inline)
        svg = drawn.svgxml()
        below = drawn.getyofst() / _EM
    except Exception as error:
        raise ExtensionError(f"{tex!r} is no LaTeX: {error}") from error
    width, height = (float(svg.get(name)) / _EM for name in ("width", "height"))
    if height > _TOO_HIGH:
        raise ExtensionError(
            f"{tex!r} is drawn {height:.0f} em high: write it otherwise"
        )
    for name in ("width", "height"):
        del svg.attrib[name]
    style = f"width: {width:.3f}em; aspect-ratio: {width:.3f} / {height:.3f}"
    if inline:
        style += f"; vertical-align: {below:.3f}em"
    # Readers that speak get the source.
    svg.attrib |= {"class": "equation", "style": style, "role": "img"}
    svg.set("aria-label", tex)
    return ElementTree.tostring(svg, encoding="unicode")


def _inline(writer, node: nodes.math) -> None:
    writer.body.append(_svg(node, inline=True))
    raise nodes.SkipNode


def _block(writer, node: nodes.math_block) -> None:
    writer.body.append(writer.starttag(node, "div", CLASS="math"))
    writer.body.append(_svg(node, inline=False))
    writer.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app) -> dict[str, bool]:
    """Register the renderer ``equations``."""
    app.add_html_math_renderer("equations", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
