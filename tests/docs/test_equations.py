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
    width, height = map(
        float, re.search(r"([\d.]+) / ([\d.]+)", svg.get("style")).groups()
    )
    # em of 16 pixels: the text of a page is 46 em wide, and a brace gone wrong 50 high.
    assert width < 46
    assert height < 8


def test_what_is_no_latex_names_itself():
    with pytest.raises(equations.ExtensionError, match=r"frac.* is no LaTeX"):
        equations._svg(nodes.math(r"\frac{1", r"\frac{1"), True)
