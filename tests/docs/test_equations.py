"""Equations of the manual are pictures that need no font, script or network."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("ziamath", reason="needs the extra docs")
from docutils import nodes

DOCS = Path(__file__).resolve().parents[2] / "docs"
sys.path.insert(0, str(DOCS / "_extensions"))
import equations  # noqa: E402


def blocks():
    for page in sorted(DOCS.glob("*.md")):
        for tex in re.findall(r"\$\$(.+?)\$\$", page.read_text("utf-8"), re.DOTALL):
            yield pytest.param(tex, id=f"{page.stem}: {' '.join(tex.split())[:30]}")


@pytest.mark.parametrize("tex", list(blocks()))
def test_an_equation_is_paths_alone_and_fits_a_page(tex):
    svg = ElementTree.fromstring(equations._svg(nodes.math_block(tex, tex), False))
    used = {element.tag.rpartition("}")[2] for element in svg.iter()}
    assert "path" in used
    assert not used & {"text", "use", "image", "script", "style", "foreignObject"}
    # The text of a page is 46 em wide.
    assert float(re.search(r"width: ([\d.]+)em", svg.get("style"))[1]) < 46


def test_lines_of_an_equation_stand_below_one_another():
    tex = r"a &= b \\ c &= d"
    one, two = (
        float(
            re.search(r"/ ([\d.]+)", equations._svg(nodes.math_block(t, t), False))[1]
        )
        for t in ("a = b", tex)
    )
    assert two > 2 * one


def test_a_brace_that_grows_without_end_is_refused():
    tex = r"R = \begin{cases} \dfrac{p}{\sum_{j \in T(h)} p_j} & k \\ 0 & j \end{cases}"
    with pytest.raises(equations.ExtensionError, match="em high"):
        equations._svg(nodes.math_block(tex, tex), False)


def test_what_is_no_latex_names_itself():
    with pytest.raises(equations.ExtensionError, match=r"frac.* is no LaTeX"):
        equations._svg(nodes.math(r"\frac{1", r"\frac{1"), True)
